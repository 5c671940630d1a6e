"""The command ``poolkit``. Exit codes: 0 success, 1 failure, 2 wrong usage or a missing extra, 130 Ctrl-C."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from poolkit.errors import MissingExtra, PoolError, shown

__all__ = ("main",)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; ``arguments`` default to those of the process.

    Importing this module needs only poolkit: the script also exists where the extra ``cli`` is not installed.
    """
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except BrokenPipeError:
        # The reader of the output has gone. Redirect it, or the interpreter's last flush would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MissingExtra as error:
        return _complain(str(error), 2)
    except PoolError as error:
        return _complain(str(error), 1)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        import click
    except ImportError:
        raise MissingExtra("the command line needs click: pip install 'poolkit[cli]'") from None
    from poolkit.cli._commands import program

    for stream in (sys.stdout, sys.stderr):  # their encoding may lack a character, such as one of a pool's name
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        code = program.main(
            args=None if arguments is None else list(arguments), prog_name="poolkit", standalone_mode=False
        )
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.Abort:
        raise KeyboardInterrupt from None
    except click.ClickException as error:
        error.show()
        return error.exit_code
    sys.stdout.flush()
    return code if isinstance(code, int) else 0


def _complain(text: str, code: int) -> int:
    try:
        sys.stderr.write(f"poolkit: {shown(text, 4000)}\n")
    except OSError:
        pass  # stderr is closed; the exit code still reports the failure
    return code
