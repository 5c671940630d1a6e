"""The gate of a cluster, which repeats a step of the inbox that was interrupted."""

from __future__ import annotations

from .._gate import Gate

__all__ = ("ClusterGate",)


class ClusterGate(Gate):
    """The gate of a cluster's core. Its steps may be repeated: capacity is a set of tickets, not a number."""

    __slots__ = ("_failed_step",)

    _failed_step: object
    """The first entry of the inbox when a step last raised."""

    def _run_inbox(self) -> None:
        inbox = self.inbox
        try:
            while True:
                if not inbox:
                    return
                step, args = inbox[0]
                step(*args)
                inbox.popleft()  # after the step: an interrupted one is repeated
        except BaseException:
            if inbox and inbox[0] is getattr(self, "_failed_step", None):
                inbox.popleft()  # it raised twice: drop it, or it would block the inbox (a user's Balancer may raise)
            elif inbox:
                self._failed_step = inbox[0]
            raise
