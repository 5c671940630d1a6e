"""pytest plugin: other pools in the place of httpcore's, other transports in the place of httpx's.

With ``CONF_SECOND`` in the environment: of httpcore2's and httpx2's.

httpx's own transports make ``httpcore.ConnectionPool`` or its subclasses for proxies, which get the new class as
their base; so ``pool-sync`` and ``pool-async`` are judged by httpx's tests too.
"""

from __future__ import annotations

import os

import conf_swap

if os.environ.get("CONF_SECOND"):
    import httpcore2 as httpcore
    import httpx2 as httpx
else:
    import httpcore
    import httpx

LIBRARIES = (httpcore.__name__, httpx.__name__)
PAIRS = (
    ("pool-sync", httpcore.ConnectionPool, "handle_request"),
    ("pool-async", httpcore.AsyncConnectionPool, "handle_async_request"),
    ("sync", httpx.HTTPTransport, "handle_request"),
    ("async", httpx.AsyncHTTPTransport, "handle_async_request"),
)


def named_as(stock: type, candidate: type) -> type:
    """Return a subclass that bears the library's class name: for the tests that compare ``repr(pool)``."""
    space = {"__module__": stock.__module__, "__qualname__": stock.__qualname__}
    return type(candidate)(stock.__name__, (candidate,), space)


def main() -> None:
    """Swap what is asked for."""
    classes = conf_swap.wanted()
    for role, stock, method in PAIRS:
        candidate = classes.get(role)
        if candidate is None:
            conf_swap.counted(stock, f"{role}: {stock.__module__}.{stock.__qualname__}", method)
            continue
        if os.environ.get("CONF_NAMED"):
            candidate = named_as(stock, candidate)
        conf_swap.swap(role, stock, candidate, method, *LIBRARIES)


main()
