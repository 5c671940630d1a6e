"""Routing of keys to shards, and the answers and errors that come back from several shards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from .._deadline import current
from .._numbers import seconds
from ..config import nearest
from ..errors import AcquireTimeout, ConfigError, PoolError, UsageError, describe, shown
from ..policies.retire import NEVER
from ..policies.routing import JumpRouter, RendezvousRouter, RingRouter, Router

__all__ = ("ROUTERS", "ScatterFailed", "Scattered", "ShardRouting")

R = TypeVar("R")

ROUTERS: dict[str, Callable[[Sequence[str]], Router]] = {
    "ring": RingRouter,
    "rendezvous": RendezvousRouter,
    "jump": JumpRouter,
}


class ScatterFailed(PoolError):
    """At least one shard failed. ``answers`` and ``errors`` hold what each shard returned or raised, by its name."""

    def __init__(
        self, message: str, answers: dict[str, Any] | None = None, errors: dict[str, BaseException] | None = None
    ) -> None:
        super().__init__(message, answers, errors)
        self.answers: dict[str, Any] = answers or {}
        self.errors: dict[str, BaseException] = errors or {}

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Scattered(Generic[R]):
    """The answers of the shards that were asked, in the order of the shards, and the errors of those that failed."""

    answers: dict[str, R] = field(default_factory=dict)
    errors: dict[str, BaseException] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every shard that was asked has answered."""
        return not self.errors

    def gather(self, merge: Callable[[Sequence[R]], Any]) -> Any:
        """Merge the answers into one with ``merge``: ``concat``, ``merge_sorted()``, ``total``, ``top(10)`` or your
        own function. Answers of failed shards are missing: check :attr:`complete` first if you need all of them.
        """
        return merge(list(self.answers.values()))


class ShardRouting:
    """The base of both sharded clusters: shards by name, the router, and the grouping of keys."""

    name: str

    def __init__(self, shards: Any, router: str | Router, name: str) -> None:
        if not isinstance(shards, dict) or not shards:
            raise ConfigError(f"shards={shards!r}: must be a non-empty dict from names to pools or clusters", "shards")
        for shard in shards:
            if not isinstance(shard, str) or not shard:
                raise ConfigError(f"shards: {shard!r}: must be a non-empty string", "shards")
        if isinstance(router, str):
            if router not in ROUTERS:
                raise ConfigError(f"router={router!r}: no such router; {nearest(router, ROUTERS)}", "router")
            router = ROUTERS[router](tuple(shards))
        if not isinstance(router, Router):
            raise ConfigError(f"router={router!r}: must be 'ring', 'rendezvous', 'jump' or a Router", "router")
        missing = [shard for shard in router.names if shard not in shards]
        if missing:
            raise ConfigError(f"router: sends keys to {missing}, which are not in shards", "router")
        self.name = shown(name)
        self.shards: dict[str, Any] = dict(shards)
        self.router = router

    def shard_of(self, key: Any) -> str:
        """Return the name of the shard that a key belongs to. Raises ConfigError for a key of the wrong type."""
        return self.router.shard_of(key)

    def groups(self, keys: Iterable[Any]) -> dict[str, list[Any]]:
        """Group keys by shard: shards in their own order, each list in the order of ``keys``."""
        found: dict[str, list[Any]] = {}
        for key in keys:
            found.setdefault(self.router.shard_of(key), []).append(key)
        return {shard: found[shard] for shard in self.shards if shard in found}

    def shard(self, key: Any) -> Any:
        """Return the shard of a key: the pool, cluster, client or engine that was given for it."""
        return self.shards[self.router.choose(key, self._load)]

    def _leasing(self, key: Any) -> Any:
        shard = self.shard(key)
        if not hasattr(shard, "lease"):
            raise UsageError(f"{self.name}: lease() of {shard!r}, which has no lease(); use shard(key)")
        return shard

    def _load(self, shard: str) -> int:
        stats = getattr(self.shards[shard], "stats", None)
        return 0 if stats is None else int(stats().leases)

    def _ending(self, timeout: float | None) -> Iterator[tuple[Any, float | None]]:
        """Yield each pool and cluster with the seconds that are left to close it."""
        seconds("timeout", timeout, most=NEVER, none="no limit")
        deadline = None if timeout is None else time.monotonic() + timeout
        for shard in self.shards.values():
            if hasattr(shard, "lease"):
                yield shard, None if deadline is None else max(0.0, deadline - time.monotonic())

    def _asked(
        self, keys: Iterable[Any] | None, timeout: float | None
    ) -> tuple[dict[str, list[Any] | None], float | None]:
        """Return the keys of each shard that is asked, and the seconds that all have, also by a :class:`deadline`."""
        seconds("timeout", timeout, most=NEVER, none="no limit")
        asked: dict[str, list[Any] | None] = dict.fromkeys(self.shards) if keys is None else dict(self.groups(keys))
        block = current()
        if block is not None:
            timeout = block.left() if timeout is None else min(timeout, block.left())
        return asked, timeout

    def _result(
        self,
        asked: Iterable[str],
        answers: dict[str, Any],
        errors: dict[str, BaseException],
        timeout: float | None,
        partial: bool,
    ) -> Scattered[Any]:
        """Build the result; a shard with neither answer nor error did not answer within ``timeout``."""
        failures: dict[str, BaseException] = {}
        for shard in asked:
            if shard in errors:
                failures[shard] = errors[shard]
            elif shard not in answers:
                failures[shard] = AcquireTimeout(f"{self.name}: shard {shard!r} did not answer within {timeout:g} s")
        sorted_answers = {shard: answers[shard] for shard in asked if shard in answers and shard not in failures}
        if failures and not partial:
            text = "; ".join(f"{shown(shard)}: {describe(error)}" for shard, error in failures.items())
            failed = ScatterFailed(
                f"{self.name}: {len(failures)} of {len(failures) + len(sorted_answers)} shards failed: {text}",
                sorted_answers,
                failures,
            )
            raise failed from next(iter(failures.values()))
        return Scattered(sorted_answers, failures)
