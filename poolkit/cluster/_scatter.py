"""What comes back from several shards: answers, errors, and one answer out of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from ..config import nearest
from ..errors import AcquireTimeout, ConfigError, PoolError, UsageError, describe, shown
from ..policies.routing import JumpRouter, RendezvousRouter, RingRouter, Router

__all__ = ("ROUTERS", "ScatterFailed", "Scattered", "ShardRouting")

R = TypeVar("R")

ROUTERS: dict[str, Callable[[Sequence[str]], Router]] = {
    "ring": RingRouter,
    "rendezvous": RendezvousRouter,
    "jump": JumpRouter,
}


class ScatterFailed(PoolError):
    """At least one shard gave no answer. ``answers`` and ``errors`` hold what there is, by name of the shard."""

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
    """The answers of the shards that were asked, in their order, and the errors of those that gave none."""

    answers: dict[str, R] = field(default_factory=dict)
    errors: dict[str, BaseException] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every shard that was asked has answered."""
        return not self.errors

    def gather(self, merge: Callable[[Sequence[R]], Any]) -> Any:
        """One answer: ``merge`` of the answers that there are (``concat``, ``merge_sorted()``, ``total``, ``top(10)``,
        or a function of your own). Look at :attr:`complete` first where a part will not do.
        """
        return merge(list(self.answers.values()))


class ShardRouting:
    """What both sharded clusters share: names, the router, and the sorting of keys."""

    name: str

    def __init__(self, shards: Any, router: str | Router, name: str) -> None:
        if not isinstance(shards, dict) or not shards:
            raise ConfigError(f"shards={shards!r}: must be a dict from names to pools or clusters, not empty", "shards")
        for shard in shards:
            if not isinstance(shard, str) or not shard:
                raise ConfigError(f"shards: {shard!r}: must be a word", "shards")
        if isinstance(router, str):
            if router not in ROUTERS:
                raise ConfigError(f"router={router!r}: no such way; {nearest(router, ROUTERS)}", "router")
            router = ROUTERS[router](tuple(shards))
        if not isinstance(router, Router):
            raise ConfigError(f"router={router!r}: must be 'ring', 'rendezvous', 'jump' or a Router", "router")
        missing = [shard for shard in router.names if shard not in shards]
        if missing:
            raise ConfigError(f"router: sends keys to {missing}, which stand in no line of shards", "router")
        self.name = shown(name)
        self.shards: dict[str, Any] = dict(shards)
        self.router = router

    def shard_of(self, key: Any) -> str:
        """The name of the shard that a key belongs to. Raises ConfigError for a key of the wrong kind."""
        return self.router.shard_of(key)

    def groups(self, keys: Iterable[Any]) -> dict[str, list[Any]]:
        """The keys by shard, in the order of the shards, each list in the order of ``keys``."""
        found: dict[str, list[Any]] = {}
        for key in keys:
            found.setdefault(self.router.shard_of(key), []).append(key)
        return {shard: found[shard] for shard in self.shards if shard in found}

    def shard(self, key: Any) -> Any:
        """What stands behind the shard of a key: its pool or cluster, or whatever you gave (a client, an engine)."""
        return self.shards[self.router.choose(key, self._load)]

    def _leasing(self, key: Any) -> Any:
        shard = self.shard(key)
        if not hasattr(shard, "lease"):
            raise UsageError(f"{self.name}: lease() of {shard!r}: has no leases; use shard(key)")
        return shard

    def _load(self, shard: str) -> int:
        stats = getattr(self.shards[shard], "stats", None)
        return 0 if stats is None else int(stats().leases)

    def _asked(self, keys: Iterable[Any] | None) -> dict[str, list[Any] | None]:
        return dict.fromkeys(self.shards) if keys is None else dict(self.groups(keys))

    def _result(
        self,
        asked: Iterable[str],
        answers: dict[str, Any],
        errors: dict[str, BaseException],
        timeout: float | None,
        partial: bool,
    ) -> Scattered[Any]:
        """What came of it; one that said nothing was too slow."""
        told: dict[str, BaseException] = {}
        for shard in asked:
            if shard in errors:
                told[shard] = errors[shard]
            elif shard not in answers:
                told[shard] = AcquireTimeout(f"{self.name}: shard {shard!r} has not answered in {timeout:g} s")
        sorted_answers = {shard: answers[shard] for shard in asked if shard in answers and shard not in told}
        if told and not partial:
            text = "; ".join(f"{shown(shard)}: {describe(error)}" for shard, error in told.items())
            failed = ScatterFailed(
                f"{self.name}: {len(told)} of {len(told) + len(sorted_answers)} shards gave no answer: {text}",
                sorted_answers,
                told,
            )
            raise failed from next(iter(told.values()))
        return Scattered(sorted_answers, told)
