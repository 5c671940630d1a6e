"""Puts poolkit's HTTP/2 connection in the place of httpcore's.

httpcore's connections to a server, through a tunnel or through a SOCKS proxy connect, negotiate the protocol, and then
store the object that speaks it in an attribute of their own. For that one assignment they get a class in which the
attribute is a property. So everything until then, and HTTP/1.1, stay httpcore's.
"""

from __future__ import annotations

import functools
import weakref
from typing import Any

from ._driver import httpcore
from ._link import Link
from ._network import Watchable

__all__ = ("substitute",)

_HTTP2 = (httpcore.HTTP2Connection, httpcore.AsyncHTTP2Connection)
_OPENING: Any = tuple(
    getattr(getattr(package, module), prefix + name)
    for prefix, package in (("", httpcore._sync), ("Async", httpcore._async))
    for module, name in (
        ("connection", "HTTPConnection"),
        ("http_proxy", "TunnelHTTPConnection"),
        ("socks_proxy", "Socks5Connection"),
    )
    if hasattr(package, module)  # httpcore has no socks_proxy where socksio is not installed
)


def substitute(connection: Any, link: Link[Any], held: tuple[type, ...]) -> None:
    """Let the connection speak HTTP/2 by poolkit's class, if it turns out to be HTTP/2.

    ``held``: types of bodies that are in memory. A subclass of httpcore's HTTP/2 connection stays as it is, and carries
    one request at a time.
    """
    if type(connection) in _HTTP2:  # made by create_connection() of a subclass of the pool
        link.connection = link.direct = _made(link, connection, held)
    elif isinstance(connection, _OPENING) and connection._http2:
        vars(connection)["_poolkit"] = weakref.ref(link), held
        connection.__class__ = _with_property(type(connection))  # type: ignore[arg-type]


@functools.lru_cache(None)
def _with_property(kind: type) -> type:
    def get(connection: Any) -> Any:
        return vars(connection)["_connection"]

    def put(connection: Any, inner: Any) -> None:
        reference, held = vars(connection).pop("_poolkit")
        connection.__class__ = kind
        link = reference()
        if type(inner) in _HTTP2 and link is not None:
            inner = _made(link, inner, held)
        connection._connection = inner

    return type(kind.__name__, (kind,), {"__module__": kind.__module__, "_connection": property(get, put)})


def _made(link: Link[Any], theirs: Any, held: tuple[type, ...]) -> Any:
    made: Any
    if isinstance(theirs, httpcore.HTTP2Connection):
        from ._h2_sync import H2Connection  # only here, because these need h2

        made = H2Connection(theirs._origin, theirs._network_stream, held)
    else:
        from ._h2_async import AsyncH2Connection

        made = AsyncH2Connection(theirs._origin, theirs._network_stream, held)
    link.http2 = made
    for stream in link.streams:
        if isinstance(stream, Watchable):
            stream.opens_until = None
    return made
