"""A reply never reaches another request, and no request is lost to a connection that the server had closed before."""

from __future__ import annotations

import importlib.util

import pytest

from poolkit.testing.servers import Certificates
from tests.support.strangers import (
    RUNNERS,
    SPOILT,
    TLS_ONLY,
    WAYS,
    Misbehaving,
    Talk,
    conversation,
    run,
)

ALL = [
    pytest.param(
        name, marks=[pytest.mark.skipif(not importlib.util.find_spec("uvloop"), reason="needs uvloop")]
    ) if name == "uvloop" else name
    for name in RUNNERS
]  # fmt: skip


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("runner", ALL)
def test_a_reply_never_reaches_another_request(certificates: Certificates, runner: str, way: str, how: str) -> None:
    """The connection on which something is left is closed, and the next request, a POST, gets another one. It is the
    same whether the event loop has read what is left, and whatever ``check_after_idle`` is.
    """
    if how in TLS_ONLY and not way.startswith("https"):
        return
    for version in ("1.1", "1.0"):
        with Misbehaving(certificates, way, version) as server:
            for turns in (0, 8):

                async def main(talk: Talk, server: Misbehaving = server, turns: int = turns) -> list[str]:
                    return await conversation(talk, server, how, turns)

                spoilt, first, second = run(runner, server, main, check_after_idle=3600)
                assert spoilt != first
                assert (first == second) == (version == "1.1")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("runner", ALL)
def test_a_sound_connection_is_used_again(certificates: Certificates, runner: str, way: str) -> None:
    """Also one on which a TLS record has arrived that carries no data, as session tickets do."""
    with Misbehaving(certificates, way) as server:
        for how in ("well", "tls-record") if way.startswith("https") else ("well",):
            for turns in (0, 8):

                async def main(talk: Talk, how: str = how, turns: int = turns) -> list[str]:
                    return await conversation(talk, server, how, turns, more=5)

                assert len(set(run(runner, server, main))) == 1
