"""The default verdict on an error."""

from __future__ import annotations

import asyncio
import socket
import ssl

import pytest

from poolkit import ConnectFailed, Pool, Verdict
from poolkit.connector import default_classify
from poolkit.testing import FakeConnector

UNKNOWN_HOST = socket.gaierror(socket.EAI_NONAME, "Name or service not known")


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (asyncio.CancelledError(), Verdict.DISCARD),
        (KeyboardInterrupt(), Verdict.DISCARD),
        (GeneratorExit(), Verdict.DISCARD),
        (TimeoutError(), Verdict.DISCARD),
        (ConnectionResetError(), Verdict.SUSPECT),
        (EOFError(), Verdict.SUSPECT),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), Verdict.SUSPECT),
        (UNKNOWN_HOST, Verdict.FATAL),
        (ssl.SSLCertVerificationError(1, "self-signed certificate"), Verdict.FATAL),
        (ValueError(), Verdict.KEEP),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value.value,
)
def test_the_default_verdict(error: BaseException, verdict: Verdict) -> None:
    assert default_classify(error) is verdict


def test_an_unknown_host_is_an_error_at_once() -> None:
    connector = FakeConnector()
    connector.fail("connect", lambda: UNKNOWN_HOST)
    with Pool(connector) as pool:
        with pytest.raises(ConnectFailed) as caught:
            pool.acquire(timeout=20)  # the test's own limit is 30 s: without the verdict this would take all of it
        assert caught.value.fatal
        assert caught.value.__cause__ is UNKNOWN_HOST
        assert connector.calls["connect"] == 1
