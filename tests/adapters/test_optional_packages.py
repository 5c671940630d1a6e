"""An adapter needs its driver, but none of the driver's optional packages.

A pool that asks for such a package may fail. The import of the adapter may not: ``poolkit[all]`` installs none of them.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

OPTIONAL = {
    "httpx": ("h2", "socksio", "trio"),
    "httpx2": ("h2", "socksio", "trio"),
    "httpcore": ("h2", "socksio", "trio"),
    "httpcore2": ("h2", "socksio", "trio"),
    "redis": ("hiredis", "cryptography"),
    "valkey": ("libvalkey", "cryptography"),
    "sqlalchemy": ("psycopg", "asyncpg"),
    "asyncpg": ("gssapi", "uvloop"),
    "urllib3": ("socks", "h2"),
    "requests": ("socks",),
}


@pytest.mark.parametrize(
    ("adapter", "missing"), [(adapter, missing) for adapter, names in OPTIONAL.items() for missing in names]
)
def test_an_adapter_can_be_imported_without_an_optional_package(adapter: str, missing: str) -> None:
    if importlib.util.find_spec(adapter) is None:
        pytest.skip(f"{adapter} is not installed")
    code = f"import sys; sys.modules[{missing!r}] = None; import poolkit_adapters.{adapter}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
