"""What the dashboard costs: acquire/release pairs with and without it, turn by turn. ``python bench/dashboard.py``

Each turn runs pairs for a second of wall time on one thread and divides the CPU time of the *whole process* by their
number; with the dashboard, its page's question is asked and answered once in that second (asking is counted, too; a
service has that done by another process).
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable

from poolkit import Pool
from poolkit.dashboard import start
from poolkit.dashboard._remote import Remote
from poolkit.testing import FakeConnection, FakeConnector


def pairs(pool: Pool[FakeConnection], seconds: float, look: Callable[[], object] | None) -> float:
    """CPU seconds of the process for one pair."""
    worker = None
    if look is not None:

        def look_once(look: Callable[[], object] = look) -> None:
            time.sleep(seconds / 2)
            look()

        worker = threading.Thread(target=look_once)
    end = time.perf_counter() + seconds
    done = 0
    began = time.process_time()
    if worker is not None:
        worker.start()
    acquire, release = pool.acquire, pool.release
    while time.perf_counter() < end:
        for _ in range(1000):
            release(acquire())
        done += 1000
    if worker is not None:
        worker.join()
    return (time.process_time() - began) / done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=1.0)
    arguments = parser.parse_args()
    pool: Pool[FakeConnection] = Pool(FakeConnector(resets=False), max_size=10, name="bench")
    for connection in [pool.acquire() for _ in range(10)]:
        pool.release(connection)
    ratios, again, bare, looks = [], [], [], []
    for _ in range(arguments.turns):
        without = pairs(pool, arguments.seconds, None)
        with start() as dashboard:
            page = Remote(dashboard.address)
            ratios.append(pairs(pool, arguments.seconds, page.state) / without)
            began = time.process_time()
            page.state()
            looks.append(time.process_time() - began)
        again.append(pairs(pool, arguments.seconds, None) / without)
        bare.append(without)
    pool.close()
    print(f"a pair without a dashboard               {statistics.median(bare) * 1e9:7.0f} ns CPU")
    for title, found in (("looked at each second", ratios), ("without it once more (noise)", again)):
        print(f"{title:40} x {statistics.median(found):.3f} (of {len(found)}, {min(found):.3f} to {max(found):.3f})")
    print(f"one look, asking and answering           {statistics.median(looks) * 1e3:7.2f} ms CPU")


if __name__ == "__main__":
    main()
