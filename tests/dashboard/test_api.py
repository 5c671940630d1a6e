"""The JSON API: what it tells of real pools, and what it refuses without a change."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
from importlib.resources import files
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

import poolkit
from poolkit import AsyncPool, BreakerConfig, Budget, ConfigError, ConnectFailed, Event, EventKind, Pool
from poolkit.cluster import Cluster
from poolkit.dashboard import DashboardApp
from poolkit.dashboard._recorder import Recorder
from poolkit.dashboard._state import FEW, LISTED, brief_of, detail_of, merged, state_of
from poolkit.telemetry.alerts import Alerts, Thresholds
from poolkit.testing import AsyncFakeConnector, FakeConnector, ManualClock
from tests.support.instructions import instructions

from .conftest import TOKEN, exhausted

AUTHORIZED = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}


def ask(app: Any, path: str, method: str = "GET", base: str = "http://localhost", **options: Any) -> httpx.Response:
    """One request to an ASGI application."""

    async def one() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=base) as client:
            return await client.request(method, path, **options)

    return asyncio.run(one())


def seen(app: Any, name: str) -> dict[str, Any]:
    """What the dashboard says of a pool."""
    (found,) = [pool for pool in ask(app, "/api/state").json()["pools"] if pool["name"] == name]
    return dict(found)


def opened(app: Any, name: str) -> dict[str, Any]:
    """All that it says of a pool."""
    return dict(ask(app, f"/api/pools/{seen(app, name)['id']}").json())


def test_the_state_names_holders_ages_places_waiters_and_the_cause(orders: Pool[Any]) -> None:
    """What somebody at three in the morning needs is in one answer."""
    with exhausted(orders):
        pool, whole = seen(DashboardApp(), "orders-db"), opened(DashboardApp(), "orders-db")
    assert (pool["in_use"], pool["idle"], pool["size"], pool["max_size"], pool["waiting"]) == (2, 0, 2, 2, 1)
    assert [lease["holder"] for lease in pool["held"]] == ["MainThread", "MainThread"]
    assert pool["held"][0]["held"] >= pool["held"][1]["held"] > 0
    assert re.search(r"tests/dashboard/conftest\.py:\d+$", pool["held"][0]["place"])
    assert [(waiter["holder"], waiter["ahead"]) for waiter in pool["queue"]] == [("patient", 0)]
    assert pool["diagnosis"]["cause"] == "too small"
    assert (pool["acquires"], pool["connects"], pool["phase"]) == (2, 2, "open")
    assert pool["endpoints"] == []  # those whose breaker is not closed
    assert whole["settings"]["max_size"] == {"value": 2, "source": "keyword"}
    assert whole["settings"]["max_lifetime"] == {"value": 1800.0, "source": "default"}
    assert [(endpoint["in_use"], endpoint["breaker"]) for endpoint in whole["endpoints"]] == [(2, "closed")]
    assert "in use 2/2" in whole["words"]
    assert [lease["place"] for lease in whole["held"]] == [lease["place"] for lease in pool["held"]]
    assert set(pool) < set(whole)


def test_of_many_leases_the_longest_are_listed_and_more_where_a_pool_is_opened() -> None:
    app = DashboardApp()
    with Pool(FakeConnector(), max_size=100, name="busy") as pool, contextlib.ExitStack() as held:
        for _ in range(60):
            held.enter_context(pool.lease())
        brief, whole = seen(app, "busy"), opened(app, "busy")
    assert (brief["leases"], len(brief["held"]), len(whole["held"])) == (60, 1, LISTED)
    ages = [lease["held"] for lease in whole["held"]]
    assert ages == sorted(ages, reverse=True)
    numbers = [lease["connection_id"] for lease in whole["held"]]
    assert [lease["connection_id"] for lease in brief["held"]] == numbers[:1]


def test_of_a_pool_with_a_problem_the_longest_leases_are_listed() -> None:
    """``poolkit top`` shows them."""
    with Pool(FakeConnector(), max_size=5, name="full") as pool, contextlib.ExitStack() as held:
        for _ in range(5):
            held.enter_context(pool.lease())
        brief = seen(DashboardApp(), "full")
    ages = [lease["held"] for lease in brief["held"]]
    assert len(ages) == FEW
    assert ages == sorted(ages, reverse=True)


@pytest.mark.parametrize("suspended", [False, True])
def test_the_state_says_of_a_pool_what_its_details_say(suspended: bool) -> None:
    """Of a pool where nothing is wrong it is computed in a shorter way."""
    clock = ManualClock()
    with Pool(FakeConnector(), max_size=3, name="looked-at", clock=clock) as pool, contextlib.ExitStack() as held:
        for _ in range(2):
            held.enter_context(pool.lease())
            clock.advance(0.7)
        pool.lease().close()
        clock.advance(2.0)
        if suspended:
            pool.suspend()
        brief, whole = brief_of(pool, "1"), detail_of(pool, "1")
    assert (brief["diagnosis"] is not None) is suspended
    assert brief.pop("endpoints") == []
    listed = brief.pop("held")
    assert brief == {name: whole[name] for name in brief}
    assert listed == whole["held"][: 2 if suspended else 1]
    assert brief["acquires"] == 3
    assert brief["longest_held"] == pytest.approx(3.4)
    assert [lease["held"] for lease in listed] == pytest.approx([3.4, 2.7][: len(listed)])


def test_an_endpoint_that_cannot_be_reached_is_in_the_state() -> None:
    """``poolkit top`` names it."""
    app, connector = DashboardApp(), FakeConnector(in_caller=True)
    connector.fail("connect", lambda: ConnectionRefusedError("no"))
    with Pool(connector, name="cut-off", breaker=BreakerConfig(failure_threshold=1)) as pool:
        with pytest.raises((ConnectionRefusedError, ConnectFailed)):
            pool.acquire()
        (endpoint,) = seen(app, "cut-off")["endpoints"]
    assert (endpoint["breaker"], endpoint["last_connect_error"]) == ("open", "ConnectionRefusedError: no")


def test_details_agree_with_stats_explain_and_dump(orders: Pool[Any]) -> None:
    with exhausted(orders):
        details, text = orders.details(), orders.dump()
        assert [lease.holder for lease in details.leases] == ["MainThread", "MainThread"]
        assert details.stats.in_use == orders.stats().in_use == 2
        assert str(details.diagnosis).split(":")[0] in orders.explain()
        assert len(orders.details(most=1).leases) == 1
        assert text.count("lease of connection") == 2
        assert "patient, 0 ahead" in text


def test_tasks_are_named_and_infinity_is_text() -> None:
    async def main() -> dict[str, Any]:
        async with AsyncPool(AsyncFakeConnector(), max_size=1, name="of-tasks", acquire_timeout=float("inf")) as pool:
            async with pool.lease():
                return await opened_here(DashboardApp())

    async def opened_here(app: Any) -> dict[str, Any]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            state = await client.get("/api/state")
            (found,) = [pool for pool in state.json()["pools"] if pool["name"] == "of-tasks"]
            return dict((await client.get(f"/api/pools/{found['id']}")).json())

    pool = asyncio.run(main())
    assert pool["kind"] == "AsyncPool"
    assert re.fullmatch(r"Task-\d+", pool["held"][0]["holder"])
    assert pool["settings"]["acquire_timeout"]["value"] == "inf"


def test_clusters_point_to_their_pools_and_budgets_to_theirs() -> None:
    budget = Budget(5, name="postgres")
    with (
        Cluster(lambda node: FakeConnector(), ["one", "two"], name="replicas") as cluster,
        Pool(FakeConnector(), name="with-budget", budget=budget) as pool,
        cluster.lease(),
        pool.lease(),
    ):
        state = ask(DashboardApp(), "/api/state").json()
    (found,) = [one for one in state["clusters"] if one["name"] == "replicas"]
    assert {node["name"]: node["state"] for node in found["nodes"]} == {"one": "usable", "two": "usable"}
    assert sum(node["leases"] for node in found["nodes"]) == found["leases"] == 1
    assert {node["pool"] for node in found["nodes"]} <= {one["id"] for one in state["pools"]}
    (found,) = [one for one in state["budgets"] if one["name"] == "postgres"]
    assert (found["limit"], found["held"], found["pools"][0]["pool"]) == (5, 1, "with-budget")


def test_pools_of_one_name_are_told_apart_and_a_closed_one_is_gone() -> None:
    app = DashboardApp()
    with Pool(FakeConnector(), name="twin"), Pool(FakeConnector(), name="twin"):
        twins = [pool["id"] for pool in ask(app, "/api/state").json()["pools"] if pool["name"] == "twin"]
        assert len(set(twins)) == 2
    assert "twin" not in [pool["name"] for pool in ask(app, "/api/state").json()["pools"]]


def test_the_history_has_a_point_for_each_look_and_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poolkit.dashboard._recorder.POINTS", 3)
    clock = ManualClock()
    with Pool(FakeConnector(), max_size=2, name="past", clock=clock) as pool:
        recorder = Recorder(interval=None, pools=lambda: [pool])
        with pool.lease():
            for _ in range(5):
                clock.advance(5)
                recorder.tick()
        points = recorder.history()[recorder.id_of(pool)]
        recorder.close()
    assert len(points) == 3
    assert [load for _, load, _, _, _ in points] == [0.5, 0.5, 0.5]


def test_events_are_kept_as_text_counted_when_they_repeat_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage of a thousand failures does not push out what came before, and a password is blotted out."""
    monkeypatch.setattr("poolkit.dashboard._recorder.EVENTS", 4)
    recorder = Recorder(interval=None, pools=list)
    with Pool(FakeConnector(), name="db") as pool:
        for n in range(50):
            error = ConnectionRefusedError(f"postgresql://app:secret@db refused, attempt {n}")
            for listener, _ in pool._listeners.current:
                listener(Event(EventKind.CONNECT_FAILED, "db", 0.0, connection_id=n, error=error))
        pool.suspend()
        kept = [event for event in recorder.events(100) if event["source"] == "db"]
        assert [(event["event"], event["times"]) for event in kept] == [
            ("pool suspended", 1), ("connect failed", 50), ("pool ready", 1), ("pool created", 1),
        ]  # fmt: skip
        assert "attempt 49" in kept[1]["text"]
        assert "secret" not in json.dumps(kept)
        pool.resume()
        pool.clear()
        assert len(recorder.events(100)) == 4
        recorder.close()
        assert not [listener for listener, _ in pool._listeners.current if listener is recorder._log]


def test_alerts_are_those_of_the_process_or_where_there_are_none_the_defaults() -> None:
    with Pool(FakeConnector(), max_size=1, name="alerting") as pool:
        recorder = Recorder(interval=None, pools=lambda: [pool])
        with pool.lease(), pytest.raises(poolkit.AcquireTimeout):
            pool.acquire(timeout=0)
        recorder.tick()
        assert [(number, alert.name) for number, alert in recorder.alerts() if alert.pool == "alerting"] == [
            (recorder.id_of(pool), "timeouts")
        ]
        own = Alerts(Thresholds(timeouts=None), interval=None, pools=lambda: [pool])
        recorder.tick()
        assert not [alert for _, alert in recorder.alerts() if alert.pool == "alerting"]
        own.close()
        recorder.close()


def test_pools_in_trouble_and_severe_alerts_are_first() -> None:
    """In one process, and in the view of several."""
    with contextlib.ExitStack() as stack:
        names = ("healthy", "suspended", "timed-out", "used")
        a, b, c, d = (stack.enter_context(Pool(FakeConnector(), max_size=1, name=name)) for name in names)
        recorder = Recorder(interval=None, pools=lambda: [a, b, c, d])
        stack.callback(recorder.close)
        b.suspend()
        with c.lease():
            for _ in range(2):
                with pytest.raises(poolkit.AcquireTimeout):
                    c.acquire(timeout=0)
        recorder.tick()
        state = state_of(recorder, actions=False)
        state["alerts"].append({"severity": "info", "at": 0.0, "id": recorder.id_of(d)})
        both = merged([state, {**state, "pools": [], "alerts": [{"severity": "warning", "at": 0.0}]}])
    order = ["timed-out", "suspended", "healthy", "used"]
    assert [pool["name"] for pool in state["pools"]] == order
    assert [(one["pool"], one["id"], one["value"]) for one in state["alerts"][:1]] == [
        ("timed-out", recorder.id_of(c), 2.0)
    ]
    assert [pool["name"] for pool in both["pools"]] == ["timed-out", "suspended", "used", "healthy"]
    assert [one["severity"] for one in both["alerts"]] == ["critical", "warning", "info"]


def test_an_endpoint_has_the_name_of_its_origin() -> None:
    keys = {
        (b"https", b"api.example", 443): "https://api.example:443",
        (b"http", b"::1", 80): "http://[::1]:80",
        ("https", "host", 8443): "https://host:8443",
        ("shard", 7): "('shard', 7)",
        "replica": "replica",
    }
    with Pool(FakeConnector(), name="origins", keyed=True, max_size=9) as pool, contextlib.ExitStack() as held:
        for key in keys:
            held.enter_context(pool.lease(key=key))
        found = {endpoint["key"] for endpoint in opened(DashboardApp(), "origins")["endpoints"]}
    assert found - {None} == set(keys.values())


def test_a_process_has_the_name_of_its_service_or_program() -> None:
    (process,) = ask(DashboardApp(service="shop"), "/api/state").json()["processes"]
    assert process["service"] == "shop"
    (process,) = ask(DashboardApp(), "/api/state").json()["processes"]
    assert process["service"] == process["program"]
    for wrong in ("", " ", 7):
        with pytest.raises(ConfigError, match="must be the name of the service"):
            DashboardApp(service=wrong)  # type: ignore[arg-type]


def test_a_dashboard_leaves_the_ways_without_the_lock_as_they_are() -> None:
    """Nothing is counted, called or locked for it: a pair of acquire and release executes the same bytecodes."""
    with Pool(FakeConnector(resets=False), name="quick") as pool:
        pool.release(pool.acquire())
        before = instructions(lambda: pool.release(pool.acquire()))
        app = DashboardApp(token=TOKEN)
        assert seen(app, "quick")["acquires"] > 0
        assert instructions(lambda: pool.release(pool.acquire())) == before


# -- actions ----------------------------------------------------------------------------------------------------------


def act(app: Any, name: str, action: str, body: Any = None, **options: Any) -> httpx.Response:
    headers = {**AUTHORIZED, **options.pop("headers", {})}
    content = options.pop("content", json.dumps({} if body is None else body))
    path = f"/api/pools/{seen(app, name)['id']}/{action}"
    return ask(app, path, "POST", headers=headers, content=content, **options)


def test_actions_change_the_pool_and_say_so(orders: Pool[Any]) -> None:
    app = DashboardApp(token=TOKEN)
    with orders.lease() as before:
        pass
    assert act(app, "orders-db", "clear").json() == {"done": "orders-db: cleared"}
    with orders.lease() as after:
        assert after is not before
    assert act(app, "orders-db", "suspend", {"fail_fast": True}).json() == {"done": "orders-db: suspended"}
    with pytest.raises(poolkit.PoolSuspended):
        orders.acquire()
    assert seen(app, "orders-db")["phase"] == "suspended"
    assert act(app, "orders-db", "resume").status_code == 200
    orders.lease().close()
    assert act(app, "orders-db", "resize", {"max_size": 7}).json() == {"done": "orders-db: max_size is 7"}
    assert orders.config.max_size == 7
    assert opened(app, "orders-db")["settings"]["max_size"]["source"] == "reconfigure()"
    told = [event["event"] for event in ask(app, "/api/state").json()["events"] if event["source"] == "orders-db"]
    assert {"pool reconfigured", "pool suspended", "pool cleared"} <= set(told)


REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "no token": ({"headers": {"Authorization": ""}}, 401, "needs the token"),
    "another token": ({"headers": {"Authorization": "Bearer only-for-this-test-0124"}}, 401, "needs the token"),
    "another scheme": ({"headers": {"Authorization": f"Basic {TOKEN}"}}, 401, "needs the token"),
    "a token that is no text": ({"headers": {"Authorization": b"Bearer \xff\xfe"}}, 401, "needs the token"),
    "a token in the URL": ({"headers": {"Authorization": ""}, "params": {"token": TOKEN}}, 401, "needs the token"),
    "another origin": ({"headers": {"Origin": "http://evil.example"}}, 403, "another origin"),
    "no origin": ({"headers": {"Origin": "null"}}, 403, "another origin"),
    "another port": ({"headers": {"Origin": "http://localhost:9"}}, 403, "another origin"),
    "a foreign site": ({"headers": {"Sec-Fetch-Site": "cross-site"}}, 403, "another origin"),
    "a form": ({"headers": {"Content-Type": "application/x-www-form-urlencoded"}}, 415, "JSON object"),
    "not JSON": ({"content": "max_size=3"}, 400, "not JSON"),
    "no object": ({"body": [3]}, 400, "must be a JSON object"),
    "an unknown option": ({"body": {"maxsize": 3}}, 400, "unknown option 'maxsize' (known: max_size)"),
    "no size": ({"body": {}}, 400, "max_size=None must be a whole number"),
    "no limit": ({"body": {"max_size": None}}, 400, "max_size=None must be a whole number"),
    "a size of 0": ({"body": {"max_size": 0}}, 400, "max_size=0"),
    "a size as text": ({"body": {"max_size": "9"}}, 400, "max_size='9' must be"),
    "a size below min_size": ({"body": {"max_size": 1}}, 400, "at most max_size (1)"),
    "a very long body": ({"content": "{" + " " * 20_000 + "}"}, 413, "longer than 10000 bytes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why_and_changes_nothing(name: str) -> None:
    options, status, text = REFUSED[name]
    app = DashboardApp(token=TOKEN)
    with Pool(FakeConnector(), name="guarded", max_size=5, min_size=2) as pool:
        before = pool.describe()
        answer = act(app, "guarded", "resize", **{"body": {"max_size": 3}, **options})
        assert (answer.status_code, pool.describe()) == (status, before)
        assert text in answer.json()["error"]
        assert (answer.headers.get("www-authenticate") == "Bearer") == (status == 401)


def test_without_a_token_nothing_can_be_changed() -> None:
    app = DashboardApp()
    with Pool(FakeConnector(), name="read-only") as pool:
        assert ask(app, "/api/state").json()["actions"] is False
        for action in ("clear", "suspend", "resume", "resize"):
            answer = act(app, "read-only", action)
            assert (answer.status_code, answer.json()["error"]) == (403, "actions are not enabled in this dashboard")
        assert pool.stats().phase == "open"


def test_unknown_places_methods_and_pools() -> None:
    app = DashboardApp(token=TOKEN)
    with Pool(FakeConnector(), name="there"):
        path = f"/api/pools/{seen(app, 'there')['id']}"
        assert ask(app, f"{path}/suspend").status_code == 405
        assert ask(app, f"{path}/suspend").headers["allow"] == "POST"
        assert ask(app, path, "POST").headers["allow"] == "GET, HEAD"
        assert "no pool '1-999999' in this process" in ask(app, "/api/pools/1-999999").json()["error"]
        assert ask(app, "/api/state", "POST").headers["allow"] == "GET, HEAD"
        assert ask(app, f"{path}/drop", "POST", headers=AUTHORIZED).status_code == 404
        assert "clear, suspend, resume, resize" in ask(app, "/nonsense").json()["error"]
        gone = ask(app, "/api/pools/1-999999/clear", "POST", headers=AUTHORIZED, content="{}")
        assert (gone.status_code, gone.json()["error"]) == (
            404,
            "there is no pool '1-999999' in this process, or it was closed",
        )
    assert ask(app, "/../_desk.py").status_code == 404
    assert ask(app, "/%2e%2e/_desk.py").status_code == 404


@pytest.mark.parametrize("token", ["", "short", "fifteen-letters", "ünicode-is-no-header-value"])
def test_a_token_that_is_too_short_is_refused_at_once(token: str) -> None:
    with pytest.raises(ConfigError, match="token: must be 16 ASCII characters or more"):
        DashboardApp(token=token)


# -- the door ---------------------------------------------------------------------------------------------------------


def test_mounted_in_starlette_the_page_finds_its_parts_and_the_api() -> None:
    service = Starlette()
    service.mount("/pools", DashboardApp(token=TOKEN))
    answer = ask(service, "/pools")
    assert answer.is_redirect
    assert httpx.URL(answer.headers["location"]).path == "/pools/"
    page = ask(service, "/pools/")
    assert "<title>Pools" in page.text
    for name in re.findall(r'(?:href|src)="([\w./]+)"', page.text):
        assert ask(service, f"/pools/{name}").status_code == 200, name
    with Pool(FakeConnector(), name="mounted") as pool:
        (found,) = [one for one in ask(service, "/pools/api/state").json()["pools"] if one["name"] == "mounted"]
        path = f"/pools/api/pools/{found['id']}/suspend"
        assert ask(service, path, "POST", headers=AUTHORIZED, content="{}").status_code == 200
        assert pool.stats().phase == "suspended"


@pytest.mark.parametrize("path", ["/proxied/api/state", "/api/state"])
def test_a_root_path_is_honoured_whether_the_server_leaves_it_in_the_path_or_not(path: str) -> None:
    async def behind(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "root_path": "/proxied"}, receive, send)

    app = DashboardApp()
    assert "pools" in ask(behind, path).json()
    assert ask(behind, "/proxied").headers["location"] == "/proxied/"


@pytest.mark.anyio
async def test_it_runs_on_asyncio_and_trio_and_answers_head() -> None:
    transport = httpx.ASGITransport(DashboardApp())
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        assert (await client.get("/api/state")).status_code == 200
        head = await client.head("/")
    assert (head.content, int(head.headers["content-length"]) > 1000) == (b"", True)


def test_lifespan_is_answered_and_a_websocket_closed() -> None:
    async def main() -> list[str]:
        sent: list[str] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message["type"])

        messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

        async def receive() -> dict[str, Any]:
            return next(messages)

        await DashboardApp()({"type": "lifespan"}, receive, send)
        await DashboardApp()({"type": "websocket"}, receive, send)
        return sent

    assert asyncio.run(main()) == ["lifespan.startup.complete", "lifespan.shutdown.complete", "websocket.close"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8787", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("pools.internal", 200),
        ("evil.example", 403), ("127.0.0.1.evil.example", 403), ("localhost.evil.example:80", 403), ("", 403),
        ("localhost@evil.example", 403), ("pools.internal/../x", 403),
    ],
)  # fmt: skip
def test_a_name_that_is_none_of_the_pages_is_refused(host: str, status: int) -> None:
    """DNS rebinding: a page at evil.example whose name has come to mean 127.0.0.1 reads nothing."""
    app = DashboardApp(allowed_hosts=["pools.internal"])
    assert ask(app, "/api/state", headers={"Host": host}).status_code == status


def test_every_answer_carries_a_strict_policy() -> None:
    for path in ("/", "/api/state", "/nonsense"):
        headers = ask(DashboardApp(), path).headers
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert "unsafe" not in headers["content-security-policy"]
        assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "no-store")
        assert "access-control-allow-origin" not in headers


def test_the_page_asks_nothing_of_the_outside_world() -> None:
    for asset in (files("poolkit.dashboard") / "page").iterdir():
        text = asset.read_text(encoding="utf-8")
        assert set(re.findall(r"\bhttps?://[^\s\"'<>]+", text)) <= {"http://www.w3.org/2000/svg"}, asset
        assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|\beval\b|\son\w+=\"|style=", text), asset
        assert len(text.splitlines()) <= 400


def test_the_dashboard_itself_needs_the_standard_library_alone() -> None:
    program = (
        "import sys\n"
        "for name in ('click', 'rich', 'uvicorn', 'starlette', 'httpx', 'h11', 'anyio'): sys.modules[name] = None\n"
        "from poolkit.dashboard import DashboardApp, start\n"
        "with start(port=0): DashboardApp()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=25)
