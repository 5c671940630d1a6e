"""Whether q was pressed: the terminal gives single keys while this is open."""

from __future__ import annotations

import sys
import time
from typing import Any

__all__ = ("Keys",)


class Keys:
    """A context manager around a terminal as standard input; of anything else, and on Windows, no key is read."""

    def __init__(self) -> None:
        self._before: list[Any] | None = None

    def __enter__(self) -> Keys:
        if sys.platform != "win32" and sys.stdin.isatty():
            import termios
            import tty

            self._before = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)
        return self

    def __exit__(self, *exc: object) -> None:
        if sys.platform != "win32" and self._before is not None:
            import termios

            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._before)

    def quit_within(self, seconds: float) -> bool:
        """Wait so long, or until q is pressed; whether it was."""
        if sys.platform == "win32" or self._before is None:
            time.sleep(seconds)
            return False
        import os
        import select

        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([sys.stdin], [], [], left)[0]:
                pressed = os.read(sys.stdin.fileno(), 64)
                if not pressed or b"q" in pressed.lower():  # nothing: the terminal is gone
                    return True
        return False
