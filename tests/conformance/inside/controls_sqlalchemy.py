"""Classes with a known result, to check the harness with: some must score as the stock pool, some must not."""

from __future__ import annotations

from typing import Any

from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool


class TrivialPool(QueuePool):
    """The stock pool by another name."""

    _sqla_logger_namespace = "sqlalchemy.pool.impl.TrivialPool"


class AsyncTrivialPool(AsyncAdaptedQueuePool):
    """The stock pool by another name."""

    _sqla_logger_namespace = "sqlalchemy.pool.impl.AsyncTrivialPool"


class NoOverflowPool(QueuePool):
    """Broken: forgets that it may grow beyond its size."""

    def __init__(
        self,
        creator: Any,
        pool_size: int = 5,
        max_overflow: int = 10,
        timeout: float = 30.0,
        use_lifo: bool = False,
        **kw: Any,
    ) -> None:
        super().__init__(creator, pool_size, 0, min(timeout or 0.0, 1.0), use_lifo, **kw)


class AsyncForgetfulPool(AsyncAdaptedQueuePool):
    """Broken: loses the events when it is made again."""

    def recreate(self) -> Any:
        made = super().recreate()
        made.dispatch = type(made.dispatch)(type(made))
        return made


class KeepsPlacePool(QueuePool):
    """Broken: a connect that fails keeps its place."""

    def _do_get(self) -> Any:
        try:
            return super()._do_get()
        except BaseException as error:
            if type(error).__name__ != "TimeoutError":
                self._overflow += 1
            raise


class AsyncKeepsPlacePool(AsyncAdaptedQueuePool):
    """Broken: a connect that fails keeps its place."""

    def _do_get(self) -> Any:
        try:
            return super()._do_get()
        except BaseException as error:
            if type(error).__name__ != "TimeoutError":
                self._overflow += 1
            raise
