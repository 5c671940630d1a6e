"""The description of a node, and the parser of documents that list nodes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from .._numbers import given, is_number, is_whole
from ..config import nearest
from ..errors import ConfigError, shown

__all__ = ("Node", "checked_nodes", "node_name", "parse_nodes")


def node_name(name: str) -> str:
    """Return the name of a node for display: one line of at most 255 characters (a DNS name fits), passwords masked.

    A node may be given as the URL of its server only; the URL is its name then.
    """
    return shown(name, 255)


@dataclass(frozen=True)
class Node:
    """One node of a cluster. Raises :class:`~poolkit.ConfigError` for an invalid value.

    Two nodes with the same ``name``, ``address`` and ``params`` are the same endpoint. If only other fields differ, a
    running cluster changes the node in place and keeps its connections.
    """

    name: str
    """Unique in the cluster; used in messages and metrics."""
    address: str = ""
    """Passed to the connector: host and port, a URL or a connection string. "": the same as ``name``."""
    weight: float = 1.0
    """Above 0. With a strategy that uses weights, twice the weight gets twice the share."""
    priority: int = 0
    """Nodes with a higher number serve only while all nodes with lower numbers are down or full."""
    zone: str = ""
    """Its location; clusters of the same zone (``ClusterConfig.zone``) prefer it within its priority."""
    role: str | None = None
    """"primary", "replica" or another string; None: unknown, or what the cluster's ``role_of`` returns."""
    params: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Other values that the connector needs."""

    def __post_init__(self) -> None:
        name: Any = self.name
        if not isinstance(name, str) or not name:
            raise ConfigError(f"name={name!r}: must be a non-empty string", "name")
        at = f"node {self.name!r}: "
        if not isinstance(self.address, str):
            raise ConfigError(f"{at}address={self.address!r}: must be a string", "address")
        if not self.address:
            object.__setattr__(self, "address", self.name)
        object.__setattr__(self, "name", node_name(name))
        weight: Any = self.weight
        if not is_number(weight) or not 0 < weight < math.inf:
            raise ConfigError(
                f"{at}weight={given(weight)}: must be a number above 0 (leave a node out to disable it)", "weight"
            )
        priority: Any = self.priority
        if not is_whole(priority):
            raise ConfigError(f"{at}priority={priority!r}: must be a whole number, 0 (tried first) or more", "priority")
        if not isinstance(self.zone, str):
            raise ConfigError(f"{at}zone={self.zone!r}: must be a string", "zone")
        role: Any = self.role
        if role is not None and (not isinstance(role, str) or not role):
            raise ConfigError(f"{at}role={role!r}: must be a non-empty string, or None", "role")
        if not isinstance(self.params, Mapping):
            raise ConfigError(f"{at}params={self.params!r}: must be a table", "params")

    def __repr__(self) -> str:
        values = ", ".join(f"{each.name}={shown(repr(getattr(self, each.name)), 1000)}" for each in fields(self))
        return f"Node({values})"

    def same_endpoint(self, other: Node) -> bool:
        """Return whether connections to one node can be used for the other."""
        return (self.name, self.address, dict(self.params)) == (other.name, other.address, dict(other.params))


_KNOWN = tuple(f.name for f in fields(Node))


def checked_nodes(nodes: Iterable[Node | str], source: str = "nodes") -> tuple[Node, ...]:
    """Return the nodes; a string becomes a node with that name and address. ConfigError if none, or not unique."""
    if isinstance(nodes, (str, Node)) or not isinstance(nodes, Iterable):
        raise ConfigError(f"{source}={nodes!r}: must be a list of nodes", "nodes")
    found: dict[str, Node] = {}
    for node in nodes:
        if isinstance(node, str):
            node = Node(node)
        if not isinstance(node, Node):
            raise ConfigError(f"{source}: {node!r}: must be a Node or the address of one", "nodes")
        if node.name in found:
            raise ConfigError(f"{source}: two nodes are called {node.name!r}; names must be unique", "name")
        found[node.name] = node
    if not found:
        raise ConfigError(f"{source}: the list of nodes is empty; a cluster needs one or more", "nodes")
    return tuple(found.values())


def parse_nodes(document: object, source: str) -> tuple[Node, ...]:
    """Parse a document of nodes: ``{"nodes": [{"name": ..., "address": ..., "weight": ...}, ...]}``.

    Raises ConfigError, naming ``source``, if any part of the document is invalid; no part of it is used then.
    """
    if not isinstance(document, Mapping):
        raise ConfigError(f"{source}: must be a table with a list 'nodes', not {type(document).__name__}", "nodes")
    for key in document:
        if key != "nodes":
            raise ConfigError(f"{source}: {key!r}: unknown key; {nearest(str(key), ['nodes'])}", str(key))
    items = document.get("nodes")
    if not isinstance(items, list):
        raise ConfigError(f"{source}: 'nodes' must be a list of tables with name, address, weight, ...", "nodes")
    found = [parse_node(item, f"{source}: nodes[{number}]") for number, item in enumerate(items)]
    return checked_nodes(found, source)


def parse_node(item: object, source: str) -> Node:
    """Parse one node of a document: a table of :class:`Node` fields, or its address. ConfigError if it is invalid."""
    if isinstance(item, str):
        item = {"name": item}
    if not isinstance(item, Mapping):
        raise ConfigError(f"{source}: must be a table or the address of a node, not {item!r}", "nodes")
    for key in item:
        if key not in _KNOWN:
            raise ConfigError(f"{source}: {key!r}: unknown key; {nearest(str(key), _KNOWN)}", str(key))
    if "name" not in item:
        raise ConfigError(f"{source}: the key 'name' is missing", "name")
    try:
        return Node(**item)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}", error.setting) from None
