"""The fixtures for pytest, in test suites of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest_plugins = ["pytester"]

CONFTEST = 'pytest_plugins = ["poolkit.testing.pytest"]\n'
HEAD = "import pytest\nfrom poolkit import *\nfrom poolkit.testing import *\n"


@pytest.fixture
def run(pytester: pytest.Pytester):
    """Run a suite with the plugin; ``run(source)`` gives the result."""

    def run(source: str, *arguments: str) -> pytest.RunResult:
        pytester.makeconftest(CONFTEST)
        pytester.makepyfile(HEAD + source)
        # in a process of its own: in this one, the loader of the plugin's module would keep the suite and its pools
        without = ("cacheprovider", "hypothesispytest")  # hypothesis takes a second to import
        return pytester.runpytest_subprocess(*(f"-pno:{name}" for name in without), *arguments)

    return run


def test_a_lease_that_is_left_open_fails_its_test_with_the_place(run) -> None:
    """Only that test fails, with the line of the acquire; the next test does not."""
    result = run("""
pool = Pool(FakeConnector(), name="orders-db")

def take():
    return pool.lease()                                    # line 7

def test_guilty(pool_leaks):
    global kept
    kept = take()

def test_innocent(pool_leaks):
    with pool.lease():
        pass

def test_not_asked():
    pool.acquire()
""")
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_guilty*",
            "poolkit: this test left open:",
            "- orders-db: connection 1 is still leased, taken by MainThread at *.py:8",
        ]
    )


def test_a_pool_that_is_left_open_and_a_dropped_lease_fail_their_tests(run) -> None:
    """A pool with connections is reported with the place of its creation, even if the test has dropped it."""
    result = run("""
def test_open(pool_leaks):
    Pool(FakeConnector(), name="orders-db").warm_up(2)      # line 5

@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_dropped(pool_leaks):
    with Pool(FakeConnector(), name="dropping") as pool:
        pool.lease()                                       # line 10

def test_closed(pool_leaks):
    with Pool(FakeConnector()) as pool, pool.lease():
        pass
    Pool(FakeConnector())                                  # never used: nothing is open
""")
    result.assert_outcomes(passed=3, errors=2)
    result.stdout.fnmatch_lines(
        [
            "- orders-db: left open with 2 connections, created at *.py:6",
            "- dropping: a lease was dropped without close(), taken by MainThread at *.py:11; *",
        ]
    )


def test_pools_of_fixtures_may_outlive_the_test_that_first_uses_them(run) -> None:
    """Fixtures of a wider scope stay open; later ones are closed before the check; allow() ignores the rest."""
    result = run("""
@pytest.fixture(scope="module")
def shared():
    with Pool(FakeConnector()) as pool:
        yield pool

@pytest.fixture(autouse=True)
def no_leaks(pool_leaks):
    return pool_leaks

@pytest.fixture
def own():
    with Pool(FakeConnector()) as pool:
        yield pool

def test_both(shared, own):
    with shared.lease(), own.lease():
        pass

def test_wanted(no_leaks):
    pool = Pool(FakeConnector())
    no_leaks.allow(pool)
    pool.acquire()

async def _take(pool):
    return await pool.acquire()

def test_tasks():
    import asyncio
    asyncio.run(_take(AsyncPool(AsyncFakeConnector(), name="tasks")))
""")
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(["- tasks: connection 1 is still leased, taken by * at *.py:29"])


def test_after_the_test_pools_are_as_fast_as_before(run) -> None:
    """Recording places ends with the fixture, except for pools that had it enabled before."""
    result = run("""
plain, debug = Pool(FakeConnector()), Pool(FakeConnector(), debug=True)
before = [plain._slow.tracing, debug._slow.tracing]

def test_one(pool_leaks):
    assert plain._slow.tracing

def test_two():
    assert [plain._slow.tracing, debug._slow.tracing] == before == [False, True]
    assert "warn" not in vars(plain._register)
""")
    result.assert_outcomes(passed=2)


@pytest.mark.timeout(60)
def test_servers_and_the_clock_are_fixtures(run) -> None:
    """Each server answers, and a test after one that kills a server finds it running."""
    result = run("""
import httpx, psycopg, redis

def test_kill(poolkit_redis):
    poolkit_redis.kill()

def test_all(poolkit_redis, poolkit_postgres, poolkit_http):
    assert redis.Redis.from_url(poolkit_redis.url).ping()
    with psycopg.connect(poolkit_postgres.url) as connection:
        assert connection.execute("select current_database()").fetchone() == ("test",)
    assert httpx.get(poolkit_http.url + "/echo?key=x", trust_env=False).status_code == 200

def test_clock(poolkit_clock):
    connector = FakeConnector()
    with Pool(connector, clock=poolkit_clock, max_lifetime=60) as pool:
        for _ in range(2):
            with pool.lease():
                poolkit_clock.advance(61)
        assert connector.calls["connect"] == 2
""")
    result.assert_outcomes(passed=3)


def test_the_plugin_is_not_loaded_unless_a_conftest_enables_it() -> None:
    """There is no entry point, so an installed poolkit does not slow down other suites."""
    program = (
        "import sys, pytest\n"
        "pytest.main(['--version'])\n"
        "assert not [name for name in sys.modules if name.startswith('poolkit')]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
