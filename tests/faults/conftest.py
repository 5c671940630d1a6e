"""Tests that raise at every bytecode run in a thread of their own."""

from __future__ import annotations

import inspect
import threading
from typing import Any

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> object:
    """Run a test that raises between two bytecodes in a new thread.

    An exception that is raised in the middle of an ``except`` clause's own bytecodes, which Python code cannot do, may
    leave that clause's exception behind as the one "being handled" in the thread. In the main thread it would be the
    context of every later error in this process, and would keep alive what its frames refer to: pools, which other
    tests then count.
    """
    if not pyfuncitem.path.name.startswith("test_interrupt_") or inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    arguments: dict[str, Any] = {name: pyfuncitem.funcargs[name] for name in names}
    errors: list[BaseException] = []

    def run() -> None:
        try:
            pyfuncitem.obj(**arguments)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="interrupted")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return True
