"""pytest plugin: other pools in the place of SQLAlchemy's QueuePool and AsyncAdaptedQueuePool.

Dialects, ``create_engine()`` and the tests look the two up as attributes of ``sqlalchemy.pool``. Three things of
``sqlalchemy.testing`` are adapted, for the stock classes and for those under test alike; each says why.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("SQLALCHEMY_WARN_20", "true")  # before the import, as SQLAlchemy's test/conftest.py does

import conf_swap
import pytest
import sqlalchemy
import sqlalchemy.ext.asyncio
import sqlalchemy.pool.impl

STOCK_SYNC = sqlalchemy.pool.QueuePool
STOCK_ASYNC = sqlalchemy.pool.AsyncAdaptedQueuePool
TESTS = os.path.join(os.environ.get("CONF_TESTS", ""), "test") + os.sep


class _QueueView:
    """What a few tests ask of ``QueuePool._pool``, in public terms."""

    def __init__(self, pool: Any) -> None:
        self._checkedin = pool.checkedin

    def empty(self) -> bool:
        return bool(self._checkedin() == 0)


class _View:
    """Answer one private name from public methods, for code in SQLAlchemy's test directory alone.

    So the tests that only read ``_overflow`` or ``_pool.empty()`` judge a pool that keeps its counts elsewhere.
    Everyone else, the class itself first, sees whatever the class keeps under that name.
    """

    missing = object()

    def __init__(self, cls: type, name: str, answer: Callable[[Any], Any]) -> None:
        self.name, self.answer = name, answer
        self.inner: Any = next((k.__dict__[name] for k in cls.__mro__ if name in k.__dict__), self.missing)

    def __get__(self, pool: Any, owner: type | None = None) -> Any:
        if pool is None:
            return self
        if sys._getframe(1).f_code.co_filename.startswith(TESTS):
            return self.answer(pool)
        if hasattr(type(self.inner), "__set__"):  # a slot or a property
            return self.inner.__get__(pool, owner)
        if self.name in pool.__dict__:
            return pool.__dict__[self.name]
        if self.inner is self.missing:
            raise AttributeError(self.name)
        return self.inner.__get__(pool, owner) if hasattr(type(self.inner), "__get__") else self.inner

    def __set__(self, pool: Any, value: Any) -> None:
        if hasattr(type(self.inner), "__set__"):
            self.inner.__set__(pool, value)
        else:
            pool.__dict__[self.name] = value

    def __delete__(self, pool: Any) -> None:
        if hasattr(type(self.inner), "__delete__"):
            self.inner.__delete__(pool)
        elif self.name in pool.__dict__:
            del pool.__dict__[self.name]
        else:
            raise AttributeError(self.name)


def main() -> tuple[type, type]:
    """Swap both classes; return those in their places."""
    classes = conf_swap.wanted()
    sync, async_ = classes.get("sync", STOCK_SYNC), classes.get("async", STOCK_ASYNC)
    # The stock async class inherits from the sync one: it goes first, on its untouched base.
    for role, stock, candidate in (("async", STOCK_ASYNC, async_), ("sync", STOCK_SYNC, sync)):
        if candidate is stock:
            unless = STOCK_ASYNC if stock is STOCK_SYNC else None
            conf_swap.counted(stock, f"{role}: {stock.__module__}.{stock.__qualname__}", "connect", unless)
            continue
        conf_swap.swap(
            role,
            stock,
            candidate,
            "connect",
            "sqlalchemy",
            mine=(sync, async_) if async_ is not STOCK_ASYNC else (sync, STOCK_ASYNC),
            rebasing=False,
        )
        if not issubclass(candidate, STOCK_SYNC):
            candidate._overflow = _View(candidate, "_overflow", lambda pool: pool.overflow())
            candidate._pool = _View(candidate, "_pool", _QueueView)
    return sync, async_


SYNC, ASYNC = main()


def _adapt_testing() -> None:
    import sqlalchemy.dialects.postgresql.provision as provision
    import sqlalchemy.testing.engines as engines
    import sqlalchemy.testing.requirements as requirements
    from sqlalchemy.engine.url import make_url
    from sqlalchemy.testing import config

    # "The database under test uses QueuePool": a drop-in's async class need not inherit from its sync class,
    # as the stock one happens to.
    requirements.QueuePool = (SYNC, ASYNC)  # type: ignore[misc,assignment,attr-defined]

    # The extensions citext and hstore are not in the server's wheel. No test selected here uses them, but the
    # set-up of every PostgreSQL engine would fail for want of them.
    provision._extensions = []  # type: ignore[attr-defined]

    original = engines.testing_engine

    def _pool_class(url: Any, asyncio: bool) -> Any:
        try:
            url = make_url(url or config.db.url)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return url.get_dialect(_is_async=asyncio).get_pool_class(url)
        except Exception:  # whatever is wrong with the URL, the original says it better
            return None

    # It gives most engines no overflow and no wait by writing the private _timeout and _max_overflow of
    # QueuePool afterwards. Ask for the same through the constructor.
    def testing_engine(url: Any = None, options: Any = None, *, asyncio: bool = False, **more: Any) -> Any:
        options = dict(options or {})
        if not {"pool", "pool_timeout", "max_overflow"} & options.keys():
            poolclass = options.get("poolclass") or (config.db_opts or {}).get("poolclass")
            poolclass = poolclass or _pool_class(url, asyncio)
            if isinstance(poolclass, type) and issubclass(poolclass, (SYNC, ASYNC)):
                options["pool_timeout"] = options["max_overflow"] = 0
        return original(url, options, asyncio=asyncio, **more)

    for module in conf_swap.modules_of("sqlalchemy"):
        if module.__name__.startswith("sqlalchemy.testing"):
            for key, value in list(vars(module).items()):
                if value is original:
                    setattr(module, key, testing_engine)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: Any) -> None:
    """Adapt ``sqlalchemy.testing``, which must not be imported before its own plugin has set it up."""
    _adapt_testing()
