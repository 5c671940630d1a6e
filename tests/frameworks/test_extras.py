"""A framework that is not installed."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import importlib, sys
from poolkit import MissingExtra

for module, library, extra in [
    ("asgi", "anyio", "asgi"), ("flask", "flask", "flask"), ("celery", "celery", "celery"),
    ("django.postgresql.base", "django", "django"), ("django.cache", "django", "django"),
]:
    sys.modules[library] = None
    try:
        importlib.import_module(f"poolkit.frameworks.{module}")
    except MissingExtra as error:
        assert f"pip install 'poolkit[{extra}]'" in str(error), error
    else:
        raise AssertionError(module)
"""


def test_without_its_library_each_helper_says_what_to_install() -> None:
    """The error has the pip command."""
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)
