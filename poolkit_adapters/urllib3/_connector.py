"""The engine's connector for urllib3's connections."""

from __future__ import annotations

import http.client
import weakref
from typing import Any

from urllib3 import exceptions

from poolkit import Connector, Verdict
from poolkit.connector import default_classify
from poolkit.errors import LeaseOverdue

from ._link import Link, Response

__all__ = ("URLLib3Connector", "lost")

_RESPONSE_CLASS = ("response_class", "_original_response_cls")
"""Attributes of a connection: the class of its responses. botocore keeps it under the second name, for each request."""
_LOST = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError)  # RemoteDisconnected is a ConnectionResetError


def lost(error: BaseException) -> bool:
    """Return whether the peer has closed or forgotten the connection of a request that failed with ``error``."""
    return isinstance(error, _LOST)


class URLLib3Connector(Connector[Link]):
    """Makes, checks and closes the connections of one host.

    Holds only a weak reference to the pool, so that a dropped pool is freed at once.
    """

    connect_in_caller = True  # the first request opens a connection of urllib3, with the timeouts of that request
    close_in_caller = True  # HTTP has no closing message, so a close is one system call
    counted = False  # a manager makes a pool for each host
    must_be_closed = False  # a pool that is dropped closes its connections, as with urllib3
    packages = ("urllib3", "requests", "botocore", "boto3", "s3transfer")

    protocol = "http"
    """The name of these connections in telemetry."""

    def __init__(self, pool: Any, overdue: type[LeaseOverdue]) -> None:
        self._pool = weakref.ref(pool)
        self.overdue_error = overdue
        self.links: dict[int, Link] = {}

    def connect(self, timeout: float | None) -> Link:
        """Return a connection that its first request opens. The ``timeout`` of that request applies, not this one."""
        pool = self._pool()
        if pool is None:
            raise RuntimeError("bug in poolkit: a request is running, but its pool no longer exists")
        connection = pool._new_conn()
        for name in _RESPONSE_CLASS:
            if getattr(connection, name, None) is http.client.HTTPResponse:
                setattr(connection, name, Response)
        link = Link(connection)
        self.links[id(link)] = link
        return link

    def lazy(self, link: Link) -> bool:
        """Return True: every connection is opened by its first request."""
        return True

    def peek(self, link: Link) -> bool:
        """Return whether an idle connection is usable, without waiting."""
        return link.ready()

    def close(self, link: Link) -> None:
        """Close the socket."""
        self.links.pop(id(link), None)
        link.close()

    def abort(self, link: Link) -> None:
        """Close the socket. A thread that reads from it wakes up with an error."""
        self.links.pop(id(link), None)
        link.close(wake=True)

    def forget(self, link: Link) -> None:
        """Drop a connection of the parent in a forked child. The engine keeps it from being finalized."""
        self.links.pop(id(link), None)

    def classify(self, error: BaseException) -> Verdict:
        """Never reuse a connection on which a request failed. After a network error, check the idle ones, too."""
        found: Any = error
        for _ in range(3):  # urllib3 stores the reason of an error as its argument or its cause
            if default_classify(found) is Verdict.FATAL:
                return Verdict.FATAL
            inner = found.__cause__ or next((one for one in found.args if isinstance(one, BaseException)), None)
            if inner is None:
                break
            found = inner
        network = lost(error) or isinstance(error, exceptions.ProtocolError)
        return Verdict.SUSPECT if network else Verdict.DISCARD
