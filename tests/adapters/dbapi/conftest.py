"""One MariaDB server for the tests of this folder, where its programs are on PATH."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.mariadb import MISSING, MariaDBServer


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDBServer]:
    if MISSING:
        pytest.skip(MISSING)
    with MariaDBServer() as server:
        yield server
