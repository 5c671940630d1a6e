"""What a suite is: the driver, the classes, the server, the sessions."""

from __future__ import annotations

import contextlib
import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from tests.conformance.sessions import Session

__all__ = ("Suite", "private_tests")

HERE = Path(__file__).parent


class Suite(ABC):
    """One driver's own tests. Subclasses say where they are and how to run them."""

    name: str
    distribution: str  # the driver for pip, whose version the tests must have
    tests = "tests"  # test directory in the source distribution
    classes: ClassVar[Mapping[str, str]]  # role -> class under test
    aliases: ClassVar[Mapping[str, str]] = {}  # option on the command line -> role, where they differ
    optional: tuple[str, ...] = ()  # roles that need not be there
    serial = False  # whether its sessions need the same ports, so that only one may run at a time
    needs: tuple[str, ...] = ()  # further distributions without which tests cannot run

    @abstractmethod
    def sessions(self, root: Path, quick: bool, stack: contextlib.ExitStack) -> list[Session]:
        """Start the servers (``stack`` stops them) and return the sessions to run."""

    def apart(self, test: str, roles: Mapping[str, str]) -> str | None:
        """Return under what name a test is counted apart, because no class under test is meant, or None."""
        return None

    def private_list(self, session: str) -> str:
        """Return which list of private tests holds in a session: ``private-<this>.txt``."""
        return self.name

    def same_id(self, test: str, roles: Mapping[str, str]) -> str:
        """Return one spelling of a test's name, whatever the classes under test are called."""
        return test

    def available(self) -> Mapping[str, str]:
        """Return the default classes that exist; one that is not written yet is an error unless optional."""
        return {role: spec for role, spec in self.classes.items() if role not in self.optional or _exists(spec)}


def _exists(spec: str) -> bool:
    module, _, name = spec.partition(":")
    try:
        return hasattr(importlib.import_module(module), name)
    except ImportError:
        return False


def private_tests(name: str) -> dict[str, str]:
    """Read ``private-<name>.txt``: test ids (``*`` allowed, parameters optional), two spaces, the reason."""
    found: dict[str, str] = {}
    path = HERE / f"private-{name}.txt"
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.strip() and not line.startswith("#"):
            test, _, reason = line.partition("  ")
            found[test.strip()] = reason.strip()
    return found
