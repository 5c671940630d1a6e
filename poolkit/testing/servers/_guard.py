"""The guard: ends the servers when the process that started them has ended in any way.

``atexit`` does not run after SIGKILL, and Linux's parent-death signal fires when the starting *thread* ends,
which would kill a server that a worker thread restarted. So each Python process has one small guard process, which
reads a pipe that only its parent holds open. At the end of the file it ends everything that is still registered.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import threading

__all__ = ("Guard", "guard")

# Runs in a bare interpreter (-I -S). A line is "+ signal pid", "- pid", "+dir path" or "-dir path".
_PROGRAM = r"""
import os, shutil, signal, sys, time
for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(s, signal.SIG_IGN)
pids, dirs = {}, []
for line in sys.stdin:
    word, _, rest = line.rstrip("\n").partition(" ")
    if word == "+":
        number, pid = rest.split()
        pids[int(pid)] = int(number)
    elif word == "-":
        pids.pop(int(rest), None)
    elif word == "+dir":
        dirs.append(rest)
    elif word == "-dir" and rest in dirs:
        dirs.remove(rest)
def send(pid, number):
    try:
        os.killpg(pid, number)
        return True
    except OSError:
        return False
def lives(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            if file.read().rpartition(")")[2].split()[0] == "Z":
                return False  # ended; its parent is in no state to notice
    except OSError:
        pass
    return send(pid, 0)
for pid, number in pids.items():
    send(pid, number)
everything, end = list(pids), time.monotonic() + 3
while pids and time.monotonic() < end:
    pids = {pid: number for pid, number in pids.items() if lives(pid)}
    time.sleep(0.02)
for pid in everything:
    send(pid, signal.SIGKILL)
for path in dirs:
    shutil.rmtree(path, ignore_errors=True)
"""


class Guard:
    """A pipe to the guard process. Thread-safe; a forked child gets its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def watch(self, pgid: int, number: int = signal.SIGTERM) -> None:
        """End the process group ``pgid`` with signal ``number``, then SIGKILL, when this process is gone."""
        self._tell(f"+ {int(number)} {pgid}")

    def unwatch(self, pgid: int) -> None:
        """Forget the process group. It has ended, and the system may reuse its number."""
        self._tell(f"- {pgid}")

    def watch_directory(self, path: str) -> None:
        """Remove the directory ``path`` when this process is gone."""
        self._tell(f"+dir {path}")

    def unwatch_directory(self, path: str) -> None:
        """Forget the directory: it has been removed."""
        self._tell(f"-dir {path}")

    def close(self) -> None:
        """End the guard process now, together with everything that it still watches."""
        with self._lock:
            process, self._process = self._process, None
            if process is None or self._owner != os.getpid():
                return
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _tell(self, line: str) -> None:
        with self._lock:
            if self._process is None or self._owner != os.getpid():
                # a session of its own: Ctrl-C reaches only the parent, which then closes the pipe
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _PROGRAM],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,
                )
                self._owner = os.getpid()
                atexit.register(self.close)
            assert self._process.stdin is not None
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()


guard = Guard()
"""The one guard of this process."""
