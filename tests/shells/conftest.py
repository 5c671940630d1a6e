"""Every scenario runs on threads, asyncio and trio, unless it narrows ``flavour``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.shells.kit import Rig


@pytest.fixture(params=["threads", "asyncio", "trio"])
def flavour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def anyio_backend(flavour: str) -> str:
    """Scenarios on threads are coroutines too, which asyncio runs."""
    return "trio" if flavour == "trio" else "asyncio"


@pytest.fixture
def make(flavour: str) -> Iterator[Callable[..., Rig]]:
    """``async with make(max_size=2) as rig``: a pool under test."""
    rigs: list[Rig] = []

    def build(connector: Any = None, **kwargs: Any) -> Rig:
        rigs.append(Rig(flavour, connector, **kwargs))
        return rigs[-1]

    yield build
    for rig in rigs:
        rig.connector.free_all()  # what a failed test left hanging
