"""pytest plugin: other pools and managers in the place of urllib3's, another adapter in the place of requests'.

Many of urllib3's tests take connections straight from the queue of a pool. The object in the place of poolkit's queue
can be read only; here, and nowhere else, it gets the methods that such tests call.
"""

from __future__ import annotations

import importlib
import queue
from typing import Any

import conf_swap
import urllib3
from urllib3 import poolmanager
from urllib3.contrib.socks import SOCKSProxyManager

# before any swap, because it stands on the stock classes
from poolkit_adapters.urllib3._socks import PoolkitSOCKSProxyManager

LIBRARY = "urllib3"
POOLS = ("HTTPConnectionPool", "HTTPSConnectionPool")
MANAGERS = ("PoolManager", "ProxyManager")


def _stand_ins(candidate: Any, stock: tuple[str, ...]) -> dict[str, Any]:
    """Return what replaces each of urllib3's classes: the candidate, and its neighbours of the same package."""
    package = importlib.import_module(candidate.__module__.rpartition(".")[0])
    found = {name: getattr(package, f"Poolkit{name}", None) for name in stock}
    return {**{name: kind for name, kind in found.items() if kind is not None}, stock[0]: candidate}


def _swap_pools(candidate: Any) -> None:
    mine = tuple(kind for kind in candidate.__mro__ if kind.__name__ == "Pooled")
    for name, kind in _stand_ins(candidate, POOLS).items():
        stock = getattr(urllib3, name)
        role = "pool-sync" if name == POOLS[0] else f"pool-sync-{name}"
        conf_swap.swap(role, stock, kind, "urlopen", LIBRARY, mine=mine, rebasing=False)
        for scheme, old in list(poolmanager.pool_classes_by_scheme.items()):
            if old is stock:
                poolmanager.pool_classes_by_scheme[scheme] = kind


def _swap_managers(candidate: Any) -> None:
    mine = tuple(kind for kind in candidate.__mro__ if kind.__name__ == "Managed")
    for name, kind in _stand_ins(candidate, MANAGERS).items():
        role = "sync" if name == MANAGERS[0] else f"sync-{name}"
        conf_swap.swap(role, getattr(urllib3, name), kind, "urlopen", LIBRARY, "requests", mine=mine, rebasing=False)
    urllib3._DEFAULT_POOL = candidate()  # made when urllib3 was imported
    conf_swap.swap(
        "sync-SOCKSProxyManager", SOCKSProxyManager, PoolkitSOCKSProxyManager, "urlopen", LIBRARY, "requests",
        mine=mine, rebasing=False,
    )  # fmt: skip


def _get(places: Any, block: bool = True, timeout: float | None = None) -> Any:
    try:
        return places._pool()._get_conn(timeout=timeout if block else 0)
    except (urllib3.exceptions.EmptyPoolError, urllib3.exceptions.ClosedPoolError):
        raise queue.Empty from None


def _lend_queue(candidate: Any) -> None:
    places = getattr(importlib.import_module(candidate.__module__), "_Places", None)
    if places is not None:
        places.get = _get
        places.get_nowait = lambda self: self.get(block=False)
        places.put = lambda self, conn, block=True, timeout=None: self._pool()._put_conn(conn)


def main() -> None:
    """Swap what is asked for."""
    wanted = conf_swap.wanted()
    adapter = wanted.get("sync") if "pool-sync" not in wanted else None
    if adapter is not None and adapter.__name__.endswith("Adapter"):
        import requests.adapters

        conf_swap.swap("sync", requests.adapters.HTTPAdapter, adapter, "send", "requests", rebasing=False)
        return
    if "pool-sync" in wanted:
        _lend_queue(wanted["pool-sync"])
        _swap_pools(wanted["pool-sync"])
    else:
        conf_swap.counted(urllib3.HTTPConnectionPool, "pool-sync: urllib3.HTTPConnectionPool", "urlopen")
    if "sync" in wanted:
        _swap_managers(wanted["sync"])
    else:
        conf_swap.counted(urllib3.PoolManager, "sync: urllib3.PoolManager", "urlopen")


main()
