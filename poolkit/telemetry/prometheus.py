"""Prometheus: a collector that reads the pools when it is scraped. Needs ``pip install 'poolkit[prometheus]'``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from .._registry import live_pools
from ..errors import MissingExtra, UsageError, said
from ..policies.meters import Histogram
from ._processes import Board
from .families import FAMILIES, Family, Labels, Values, read

__all__ = ("PoolCollector", "register")


def _library() -> Any:
    try:
        import prometheus_client.core
    except ImportError:
        raise MissingExtra("Prometheus needs prometheus-client: pip install 'poolkit[prometheus]'") from None
    return prometheus_client.core


class PoolCollector:
    """Returns the metrics of all live pools of the process at each scrape, and costs nothing in between.

    ``pools``: a function that returns the pools; default: all. ``directory``: where the processes of one service share
    their numbers (multiprocess mode). Its default is the variable ``PROMETHEUS_MULTIPROC_DIR`` that prometheus_client
    uses. Without it, only this process is reported. In multiprocess mode a thread writes the numbers of this process
    every ``interval`` seconds. A scrape of any process returns the sum over all: connections and limits of live
    processes, counters and histograms also of ended ones.

    Raises MissingExtra without prometheus_client, ConfigError for an invalid interval or a directory that cannot be
    written to.
    """

    def __init__(
        self,
        pools: Callable[[], Iterable[Any]] = live_pools,
        *,
        directory: str | os.PathLike[str] | None = None,
        interval: float = 1.0,
    ) -> None:
        self._core = core = _library()
        self._kinds = {"gauge": core.GaugeMetricFamily, "counter": core.CounterMetricFamily,
                       "histogram": core.HistogramMetricFamily}  # fmt: skip
        self._pools = pools
        chosen = directory if directory is not None else os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        self._board = Board(chosen, lambda: read(pools()), interval) if chosen else None
        self._registry: Any = None

    def close(self) -> None:
        """Unregister from the registry of :func:`register`, and end the thread of the multiprocess mode, if there is
        one. The last numbers of this process stay. Idempotent.
        """
        registry, self._registry = self._registry, None
        if registry is not None:
            with contextlib.suppress(KeyError):  # taken out by other means
                registry.unregister(self)
        if self._board is not None:
            self._board.close()

    def describe(self) -> list[Any]:
        """Return the names of all metrics without values, so that registering does not read the pools. A registry uses
        them to detect a second collector.
        """
        return [self._metric(family, {}) for family in FAMILIES]

    def collect(self) -> Iterator[Any]:
        """Return the current metric families; called by prometheus_client."""
        values = read(self._pools()) if self._board is None else self._board.total()
        for family in FAMILIES:
            yield self._metric(family, values)

    def _metric(self, family: Family, values: Values) -> Any:
        metric = self._kinds[family.kind](family.name, family.help, labels=("pool", *family.labels))
        metric.samples.extend(_samples(self._core.Sample, family, values.get(family.name, {})))
        return metric


def _samples(sample: Callable[..., Any], family: Family, values: Mapping[Labels, Any]) -> Iterator[Any]:
    """Return the samples of a metric, the same as ``add_metric()`` of prometheus_client makes. That one takes names and
    values of labels apart and joins them again for each bucket, which is a seventh of the CPU time of a scrape.
    """
    suffix = "_total" if family.kind == "counter" else ""
    for labels, value in sorted(values.items()):
        named = dict(labels)
        if isinstance(value, Histogram):
            seen = 0.0  # each bucket includes those below it
            for bound, number in zip(_bounds(value.bounds), value.counts, strict=True):
                seen += number
                yield sample(f"{family.name}_bucket", {**named, "le": bound}, seen)
            yield sample(f"{family.name}_count", named, seen)
            yield sample(f"{family.name}_sum", named, value.sum)
        else:
            yield sample(family.name + suffix, named, value)


@cache
def _bounds(bounds: tuple[float, ...]) -> tuple[str, ...]:
    return (*map(repr, bounds), "+Inf")


def register(registry: Any = None, **options: Any) -> PoolCollector:
    """Create a :class:`PoolCollector` (with ``options``) and register it; default: prometheus_client's own registry.

    Raises UsageError if the registry already has one, because every number would be reported twice. Pass all pools in
    one call, or ``close()`` the first collector.
    """
    collector = PoolCollector(**options)
    if registry is None:
        registry = collector._core.REGISTRY
    try:
        registry.register(collector)
    except ValueError as error:
        collector.close()
        raise UsageError(
            f"register(): this registry already has these metrics and would report them twice ({said(error)}); "
            "close() the collector of the first register(), or use another registry"
        ) from None
    collector._registry = registry
    return collector
