"""Who is refused because too many wait, or because it has waited too long."""

from __future__ import annotations

from ..errors import PoolBusy
from .context import Context
from .service import Service

__all__ = ("refuse_some",)


def refuse_some(core: Context, service: Service, now: float) -> None:
    """Refuse newcomers beyond ``max_waiting``; those for whom a connection is on its way do not count. Decided when
    whoever can be served has been served. In an overloaded queue the oldest caller is refused in the newcomer's place,
    and whoever has waited for longer than ``overload.max_wait``.
    """
    while (late := core.overload.late(now)) is not None:
        core.overload.gave_up(late, now)
        service.serve(late, PoolBusy(f"{core.name}: overloaded: refused after {now - late.since:.3f} s in the queue"))
    most = core.most_waiting
    while core.newcomers:
        request = core.newcomers.popleft()
        endpoint = request.endpoint
        if most is None or not request.queued:
            continue
        if len(endpoint.queue.beside(request)) - endpoint.connecting * endpoint.streams <= most:
            continue
        surplus = endpoint.queue.line_of(request.caller_class).order.surplus(request)
        core.touched[endpoint] = None
        text = f"{most} callers wait already (max_waiting={most})"
        if surplus is request:
            endpoint.queue.discard(request)
            request.outcome = PoolBusy(f"{core.name}: {text}")
        else:
            core.overload.gave_up(surplus, now)
            service.serve(surplus, PoolBusy(f"{core.name}: overloaded: {text}, and the newest are served first"))
