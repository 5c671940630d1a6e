"""Text from outside: what is masked, what stays readable, what is escaped, and that all of it is linear and bounded."""

from __future__ import annotations

import re
import sqlite3
import sys
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from poolkit import AutoscaleConfig, ConfigError, Connector, Pool, PoolConfig, Verdict, _text
from poolkit._text import LONGEST, describe, masked, raw_text, said, shown, without_quotes
from poolkit.cluster import Node
from poolkit.cluster.discovery import EtcdDiscovery
from poolkit.connector import overloaded
from poolkit.errors import remembered
from poolkit.fleet import FleetBudget
from poolkit_adapters.dbapi._connector import DbapiConnector
from poolkit_adapters.psycopg import PoolkitConnectionPool
from poolkit_adapters.psycopg._errors import InvalidConninfo, classify

S = "s3cr3tX"

# a notation of a secret, and what must stay readable beside it
NOTATIONS: list[tuple[str, str]] = [
    # URLs
    (f"postgresql://u:{S}@h:5432/db", "postgresql://u: @h:5432/db"),
    (f"postgresql://u:it's{S}@h/db", "postgresql://u: @h/db"),
    (f'"postgresql://u:it\'s{S}@h/db"', "postgresql://u: @h/db"),
    (f'redis://:a"{S}@h', "redis:// @h"),
    (f"postgresql://u:p w{S}@h/db", "postgresql://u: @h/db"),
    (f"cannot open postgresql://u:a b c{S}@h/db now", "cannot open postgresql://u: @h/db now"),
    (f"postgresql://u:12 34{S}@h/db", "postgresql://u: @h/db"),
    (f"'postgresql://u:12 34 5{S}@h/db'", "postgresql://u: @h/db"),
    (f"url='redis://:/.hG [{S}::@h': must be", "url='redis:// @h': must be"),
    (f"open postgresql://u:@.G,$)/!]y j!4{S}@h:1/d now", "open postgresql://u: @h:1/d now"),
    (f"open postgresql://u:#&OD )L{S}@h:1/d now", "open postgresql://u: @h:1/d now"),
    (f"postgresql://user@server:{S}@host/db", "postgresql://user@server: @host/db"),
    (f"postgresql://us%40er:{S}%40%2F@host/db", "us%40er @host/db"),
    (f"redis://{S}@host:6379/0", "redis:// @host:6379/0"),
    (f"https://{S}@proxy:3128", "@proxy:3128"),
    (f"http://u:pa/ss{S}@proxy:3128", "http://u: @proxy:3128"),
    (f"http://u:{S}@h and http://x:{S}@z", "u: @h and x: @z"),
    (f"redis://u:{S}@h1:1,redis://u:{S}@h2:2", "@h1:1,redis:// @h2:2"),
    (f"mysql://root:{S}@[::1]:3306/x", "root: @[::1]:3306/x"),
    (f"postgresql+psycopg://u:{S}@h1:1,h2:2/d", "postgresql+psycopg://u: @h1:1,h2:2/d"),
    (f"postgresql://u:{S}", "postgresql://u:"),
    (f"postgresql:///?host=/tmp&password={S}&user=bob", "host=/tmp user=bob"),
    (f"postgresql://h/db?sslpassword={S}&sslmode=require", "sslmode=require"),
    (f"https://h/?X-Amz-Signature={S}&X-Amz-Security-Token={S}&Action=connect", "https://h/ Action=connect"),
    (f"postgresql://h/db?options=password%3D{S}", "postgresql://h/db"),
    # without a scheme
    (f"u:{S}@host:5432/db", "u: @host:5432/db"),
    (f"endpoint='u:{S}@h:2379': must be a URL", "endpoint='u: @h:2379': must be a URL"),
    (f"(user@server:{S}@host)", "user@server @host"),
    # connection strings
    (f"host=h password={S} dbname=x", "host=h dbname=x"),
    (f"host=h password='it\\'s {S}' dbname=x", "host=h dbname=x"),
    (f"host=h password='it's {S}' dbname=x", "host=h dbname=x"),
    (f"host=h password=a\\ {S} dbname=x", "host=h dbname=x"),
    (f"host=h password=a\\'{S} dbname=x", "host=h dbname=x"),
    (f"host=h password=ab&c;d,e{S} dbname=x", "host=h dbname=x"),
    (f"host=h password = {S} dbname=x", "host=h dbname=x"),
    (f"host=h sslpassword={S} dbname=x", "host=h dbname=x"),
    (f"Server=h;Password={S};Pwd={S};Database=d", "Server=h Database=d"),
    (f"PGPASSWORD={S} PGHOST=h", "PGHOST=h"),
    (f"PGPASSWORD={{}}{S} PGHOST=h", "PGHOST=h"),
    (f"PGPASSWORD=P}}B]:7{{'x{S} PGHOST=h", "PGHOST=h"),
    (f"REDIS_PASSWORD={S}", "REDIS_PASSWORD="),
    (f"AWS_SECRET_ACCESS_KEY={S} AWS_REGION=eu", "AWS_REGION=eu"),
    (f"sslkey=pkcs11:object=k?pin-value={S}", "sslkey=pkcs11:object=k"),
    (f"sslkey={S} host=db", "host=db"),
    (f"invalid token {S}x1 for me", "for me"),
    # names of secrets
    (f"access_token={S}", "access_token="),
    (f"client_secret={S}", "client_secret="),
    (f"api_key={S}", "api_key="),
    (f"x-api-key: {S}", "x-api-key:"),
    (f"passphrase={S}", "passphrase="),
    (f"secret:{S}", "secret:"),
    (f"password: {S}", "password:"),
    (f"auth={S}", "auth="),
    (f"credentials={S}", "credentials="),
    # Python, JSON
    (f"{{'password': '{S}', 'user': 'u'}}", "'user': 'u'"),
    (f'{{"password": "{S}", "user": "u"}}', '"user": "u"'),
    (f'{{"password":"{S}","user":"u"}}', '"user":"u"'),
    (f'{{\\"password\\": \\"{S}\\", \\"user\\": 1}}', "user"),
    (f"connect(user='a', password='{S}', host='h')", "user='a' host='h'"),
    (f"connect(user='a', password=\"it's {S}\", host='h')", "user='a' host='h'"),
    (f"password=b'{S}', host='h'", "host='h'"),
    (f"[('password', '{S}'), ('host', 'h')]", "('host', 'h')"),
    (f"auth=('u', '{S}'), host='h'", "host='h'"),
    (f"auth=BasicAuth('u', '{S}'), host='h'", "host='h'"),
    (f"credentials={{'user': 'u', 'password': '{S}'}}", "'user': 'u'"),
    (f"headers['Authorization'] = 'Bearer {S}'", "Authorization Bearer"),
    # HTTP
    (f"Authorization: Bearer {S} Host: h", "Authorization: Bearer Host: h"),
    (f"Authorization: Basic {S}", "Authorization: Basic"),
    (f"Authorization: Digest username={S}, response={S}", "Authorization: Digest"),
    (f"{{'Authorization': 'Bearer {S}', 'Host': 'h'}}", "'Authorization': 'Bearer 'Host': 'h'"),
    (f"[(b'authorization', b'Bearer {S}'), (b'host', b'h')]", "(b'host', b'h')"),
    (f"sent Bearer {S} to h", "sent Bearer to h"),
    (f"Cookie: a={S}; b={S} Host: h", "Cookie: Host: h"),
    (f"set-cookie: sid={S}; Path=/", "set-cookie:"),
    # SQL, Redis
    (f"ALTER ROLE bob PASSWORD '{S}'", "ALTER ROLE bob PASSWORD"),
    (f"CREATE USER bob IDENTIFIED BY '{S}'", "CREATE USER bob IDENTIFIED BY"),
    (f"AUTH default {S}", "AUTH"),
    (f"AUTH {S}", "AUTH"),
    (f"['AUTH', 'default', '{S}']", "AUTH"),
    (f"CONFIG SET requirepass {S}", "CONFIG SET requirepass"),
    (f"ERR unknown command 'AUTH', with args beginning with: '{S}'", "ERR unknown command"),
    # pieces of a URL, as libpq quotes them
    (f'unexpected spaces found in "p w{S}@h", use percent-encoded spaces', "unexpected spaces found in"),
    (f'invalid percent-encoded token: "p%w{S}"', "invalid percent-encoded token:"),
    # by themselves
    ("key AKIAIOSFODNN7EXAMPLE of s3cr3t", "key of s3cr3t"),
    (f"eyJhbGciOiJIUzI1NiJ9.eyJ{S}IiOiIxIn0.{S}", ""),
    (f"ghp_{S * 4}", ""),
    (f"-----BEGIN PRIVATE KEY-----\n{S}\n-----END PRIVATE KEY----- h", " h"),
]

READABLE = [
    'connection to server at "127.0.0.1", port 5432 failed: FATAL:  password authentication failed for user "bob"',
    "connection to server on socket \"/tmp/.s.PGSQL.5432\" failed: fe_sendauth: no password supplied",
    "(1045, \"Access denied for user 'root'@'localhost' (using password: YES)\")",
    "Error 111 connecting to localhost:6379. Connection refused.",
    "WRONGPASS invalid username-password pair or user is disabled.",
    "ERR AUTH <password> called without any password configured for the default user.",
    "NOAUTH Authentication required.",
    "127.0.0.1:30001@31001 myself,master",
    "MOVED 3999 127.0.0.1:6381",
    "Basic authentication required, Basic realm=x",
    "http://h:8080: refused",
    "postgresql://h1:5432,h2:5433/db?user=bob",
    "postgresql://app@h:5432/db",
    "http://[::1]:80/x",
    "must be http://HOST:PORT/PATH (or https), a process' number, or a socket",
    "must be host:port or http(s)://host:port",
    "token: must be 16 ASCII characters or more",
    "password: no such argument or setting; did you mean 'max_size'?",
    "max_size=5, name='x'; bob@example.com at 12:30:01",
]  # fmt: skip


@pytest.mark.parametrize(("text", "stays"), NOTATIONS)
def test_a_secret_is_masked_and_the_rest_stays_readable(text: str, stays: str) -> None:
    found = masked(text)
    assert S not in found
    assert "AKIAIOSFODNN7EXAMPLE" not in found
    assert "***" in found
    place = 0
    for word in stays.split():
        at = found.find(word, place)
        assert at >= 0, f"{word!r} is not in {found!r}"
        place = at + len(word)


@pytest.mark.parametrize("text", READABLE)
def test_what_is_no_secret_stays_as_it_is(text: str) -> None:
    assert masked(text) == text


@pytest.mark.parametrize(
    "text",
    [
        *(text for text, _ in NOTATIONS),
        *READABLE,
        "\x1b[31mred\r\n\u202eabc",
        f"password={S}\nhost=h",
        f"redis://u:{S}@h\nof a@b",
        "x" * 9000,
    ],
)
def test_text_that_passes_twice_stays_as_it_is(text: str) -> None:
    assert masked(masked(text)) == masked(text)
    assert shown(shown(text)) == shown(text)
    assert said(said(text)) == said(text)
    assert str(ConfigError(str(ConfigError(text)))) == str(ConfigError(text))


# -- control characters -----------------------------------------------------------------------------------------------

HARMFUL = [
    *map(chr, range(0x20)),  # C0, with CR, LF and ESC
    *map(chr, range(0x7F, 0xA0)),  # DEL and C1, with CSI and OSC
    *"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c",  # direction of writing
    *"\u200b\u200c\u200d\u2060\ufeff\u00ad",  # of no width
    *"\u2028\u2029",  # ends of lines
    "\ud800", "\udcff", "\ufffe", "\U000e0041",
]  # fmt: skip


@pytest.mark.parametrize("one", HARMFUL, ids=ascii)
def test_what_a_terminal_or_a_log_would_interpret_is_escaped(one: str) -> None:
    found = shown(f"a{one}b")
    assert found == f"a{ascii(one)[1:-1]}b"
    assert found.isprintable()
    said(Exception(f"a{one}b")).encode("ascii")  # white space of an error may have become a space
    assert said(Exception(f"a{one}b")).isprintable()


def test_letters_of_all_languages_stay_as_they_are() -> None:
    assert shown("größe 数据库 база [bold] <b>&") == "größe 数据库 база [bold] <b>&"


def test_bytes_that_are_no_text_are_escaped() -> None:
    assert shown(b"a\xffb\x1b") == r"a\xffb\x1b"


# -- errors that are no use -------------------------------------------------------------------------------------------


class Raises(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


class SaysNothing(Exception):
    def __str__(self) -> str:
        return None  # type: ignore[return-value]


class Text(str):
    __slots__ = ()

    def __getitem__(self, key: Any) -> str:
        raise RuntimeError("not to be called")

    def split(self, *args: Any) -> list[str]:  # type: ignore[override]
        raise RuntimeError("not to be called")

    def __len__(self) -> int:
        raise RuntimeError("not to be called")


class SaysMore(Exception):
    def __str__(self) -> str:
        return Text("more\x1b")


class SaysMuch(Exception):
    def __str__(self) -> str:
        return "much " * 4_000_000


def test_an_error_that_cannot_be_printed_is_told_by_its_class() -> None:
    assert describe(Raises()) == "Raises"
    assert describe(SaysNothing()) == "SaysNothing"
    assert describe(SaysMore()) == r"SaysMore: more\x1b"
    assert raw_text(Raises()) == ""


def test_an_error_of_any_length_is_cut() -> None:
    assert len(describe(SaysMuch())) <= 210
    assert len(said(SaysMuch(), 1000)) <= 1000
    assert len(raw_text(SaysMuch())) <= LONGEST
    assert len(masked("x" * 1_000_000)) <= LONGEST


@pytest.mark.parametrize("kind", [Raises, SaysNothing, SaysMore, SaysMuch])
def test_such_an_error_of_a_connect_fails_the_caller_as_any_other(kind: type[Exception]) -> None:
    class Bad(Connector[object]):
        def connect(self, timeout: float | None) -> object:
            raise kind

        def classify(self, error: BaseException) -> Verdict:
            return Verdict.FATAL  # the caller hears of it at once

    with (
        Pool(Bad(), autoscale=AutoscaleConfig(), max_size=2) as pool,
        pytest.raises(Exception, match="cannot connect") as caught,
    ):
        pool.acquire(timeout=60)
    assert isinstance(caught.value.__cause__, kind)
    assert len(str(caught.value)) < 2000
    assert str(caught.value).isprintable()


def test_a_secret_that_the_cut_would_halve_is_not_shown() -> None:
    for before in range(LONGEST - 60, LONGEST + 1):
        assert S not in masked("x" * (before - 1) + f" redis://user:{S}@host")
        assert S not in masked("x" * (before - 1) + f" user:{S}@host")
        assert S not in masked("x" * (before - 1) + f" password='{S}'")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups are new in Python 3.11")
def test_a_group_tells_of_the_first_errors_in_it() -> None:
    errors = [OSError(f"number {n} password={S}\x1b") for n in range(1000)]
    group = ExceptionGroup("all failed", errors)  # type: ignore[name-defined,unused-ignore]  # noqa: F821
    found = describe(group)
    assert "all failed" in found
    assert "number 0 password=***" in found
    assert found.isprintable()
    assert len(found) < 500


@pytest.mark.parametrize("notes", [5, ["one\x1b", 7, Raises()], "text", None])
def test_notes_of_any_kind_do_no_harm(notes: Any) -> None:
    error = OSError("x")
    error.__notes__ = notes  # type: ignore[attr-defined]
    try:
        raise error
    except OSError as caught:
        kept = remembered(caught)
    assert describe(kept) == "OSError: x"
    assert any("raised at" in str(note) for note in kept.__notes__ if isinstance(note, str))  # type: ignore[attr-defined]


def test_without_quotes_drops_what_a_parser_quotes() -> None:
    assert without_quotes(ValueError(f"cannot be an integer: '{S}' it's {S}' here")) == (
        "cannot be an integer: '***' here"
    )
    assert without_quotes(ValueError("nothing quoted")) == "nothing quoted"


# -- linear, after a cut ----------------------------------------------------------------------------------------------

NASTY = [
    "'a://b:c ", "'a",
    "://a:", "password=", "password= ", "@", "u:p@", "'password': '", "password=,", "password=a,b", "password=&a",
    "password=a;b", "password=(", "password='", 'password=\\"', "password&", "passwordpassword", "password=)", "'",
    "\\", "eyJaaaaaa.", "eyJaaaaaaa-", "Bearer ", "Basic  ", "AUTH ", "identified with x ", "identified  ",
    "-----BEGIN ", "-----BEGIN PRIVATE KEY-----", "=", " ", "secret", "authorization: a, ", "cookie: a; ",
    "http://a:b ", "http://a:1 ", "with args beginning with:", "'auth','", 'role "', 'database "a" ', "a:", "%3d",
    "\x1b", "\n", "token: \"", "[", "password=[", "auth=a(",
]  # fmt: skip


def _seconds(function: Callable[[str], object], text: str) -> float:
    begun = time.process_time()
    function(text)
    return time.process_time() - begun


def _is_linear(function: Callable[[str], object], piece: str, size: int) -> bool:
    """Whether four times the text takes about four times as long (quadratic: sixteen). Noise only makes it longer: the
    least of several runs counts, and one that fits is enough.
    """
    short, long = piece * (size // len(piece)), piece * (4 * size // len(piece))
    ratios = []
    for _ in range(10):
        least = min(_seconds(function, short) for _ in range(3))
        ratios.append(_seconds(function, long) / max(least, 1e-4))
        if ratios[-1] < 9:
            return True
    return False


@pytest.mark.parametrize("piece", NASTY)
def test_masking_is_linear_even_without_the_cut(piece: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_text, "LONGEST", sys.maxsize - 1)
    assert _is_linear(masked, piece, 40_000)


def _dbapi(text: str) -> object:
    connector = DbapiConnector(sqlite3, (), {}, PoolConfig(), setup=None, checks=None)
    return connector.classify(sqlite3.OperationalError(text))


@pytest.mark.parametrize(
    "function",
    [
        masked, shown, said, lambda text: describe(OSError(text)), without_quotes, ConfigError, InvalidConninfo,
        lambda text: overloaded(OSError(text)), lambda text: classify(psycopg.OperationalError(text)), _dbapi,
    ],
    ids=["masked", "shown", "said", "describe", "without_quotes", "ConfigError", "InvalidConninfo", "overloaded",
         "classify of psycopg", "classify of dbapi"],
)  # fmt: skip
def test_no_regular_expression_sees_more_than_the_first_part_of_a_text(
    function: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them are reached through these functions, which cut first: so their time has a bound."""
    seen: list[int] = []

    class Watched:
        def __init__(self, pattern: re.Pattern[str]) -> None:
            self._pattern = pattern

        def __getattr__(self, name: str) -> Any:
            method = getattr(self._pattern, name)
            if not callable(method):
                return method

            def call(*args: Any) -> Any:
                seen.extend(len(one) for one in args if isinstance(one, str))
                return method(*args)

            return call

    import poolkit_adapters.dbapi._connector as dbapi
    import poolkit_adapters.psycopg._errors as ours

    for module in (_text, dbapi, ours):
        for name, value in list(vars(module).items()):
            if isinstance(value, re.Pattern):
                monkeypatch.setattr(module, name, Watched(value))
    for piece in NASTY:
        function(piece * (100_000 // len(piece)))
    assert max(seen, default=0) <= 2 * LONGEST  # *** may be longer than what it stands for


# -- what shows itself ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [text for text, _ in NOTATIONS if S in text])
def test_an_error_about_a_setting_holds_no_secret_anywhere(text: str) -> None:
    for error in (ConfigError(f"url={text}: must be one", text), InvalidConninfo(f"{text}: does not parse")):
        for told in (str(error), repr(error), repr(error.args), error.setting):
            assert S not in told
            assert told.isprintable()
            assert len(told) < 3000


@pytest.mark.parametrize(
    "make",
    [
        lambda: EtcdDiscovery("/x", endpoint=f"u:{S}@h:2379"),
        lambda: EtcdDiscovery("/x", endpoint=f"etcd://u:it's {S}@h:2379"),
        lambda: EtcdDiscovery("/x", endpoint=f"http://u:{S}/x@h:2379"),
        lambda: FleetBudget(f"redis://:{S}@h", "f", limit=3),  # type: ignore[arg-type]
        lambda: FleetBudget(f"host=h password='{S}'", "f", limit=3),  # type: ignore[arg-type]
        lambda: PoolkitConnectionPool(f"postgresql://u:p w{S}@h/db"),
        lambda: PoolkitConnectionPool(f"postgresql://u:p%w{S}@h/db"),
        lambda: PoolkitConnectionPool(f"postgresql://u:{S}@[h/db"),
        lambda: Pool(Quiet(), max_size=f"postgresql://u:it's {S}@h/db"),
    ],
)
def test_a_secret_in_an_argument_is_not_in_the_error(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    for told in (str(caught.value), repr(caught.value), repr(caught.value.__cause__), repr(caught.value.args)):
        assert S not in told


class Quiet(Connector[object]):
    def connect(self, timeout: float | None) -> object:
        return object()


def test_a_node_shows_its_server_and_not_its_password() -> None:
    node = Node(f"postgresql://u:{S}@h:1/db", params={"password": S, "sslmode": "require"})
    assert node.address == f"postgresql://u:{S}@h:1/db"  # for the connector
    assert node.name == "postgresql://u:***@h:1/db"
    assert S not in repr(node)
    assert "h:1" in repr(node)
    assert "require" in repr(node)
    assert "\x1b" not in repr(Node("a\x1b\nb"))


def test_names_are_bounded_and_escaped_where_they_come_in() -> None:
    with Pool(Quiet(), name=f"a\x1b]0;x\x07\n[bold]{'y' * 1000} password={S}") as pool:
        assert pool.name.startswith(r"a\x1b]0;x\x07\n[bold]yyy")
        assert len(pool.name) == 200
        assert pool.stats().name == pool.name
    with Pool(Quiet(), name="orders db") as pool:
        assert pool.name == "orders db"
