"""``python -m tests.conformance.selfcheck``: is the harness itself in order?

Trivial classes must score as the driver's own; each broken one must be caught. Takes the options of
``python -m tests.conformance`` that say where things are: ``--cache``, ``--source``, ``--suite``.
"""

from __future__ import annotations

import sys

from tests.conformance.__main__ import main

# Suite, arguments, exit status expected.
CASES: tuple[tuple[str, dict[str, str], int], ...] = (
    ("redis", {"sync": "TrivialPool", "async": "AsyncTrivialPool"}, 0),
    ("redis", {"sync": "HidingPool", "async": "AsyncHidingPool"}, 0),  # the private list is complete
    ("redis", {"sync": "NoReusePool"}, 1),
    ("redis", {"async": "AsyncNoReusePool"}, 1),
    ("redis", {"sync": "NoLimitPool"}, 1),
    ("redis", {"async": "AsyncNoLimitPool"}, 1),
    ("redis", {"async": "AsyncWrongErrorPool"}, 1),
    ("httpcore", {"sync": "TrivialPool", "async": "AsyncTrivialPool"}, 0),
    ("httpcore", {"sync": "SlotsPool", "async": "AsyncSlotsPool"}, 0),
    ("httpcore", {"sync": "NoLimitPool"}, 1),
    ("httpcore", {"async": "AsyncNoLimitPool"}, 1),
    ("httpcore", {"sync": "NoReusePool"}, 1),
    ("httpcore", {"async": "AsyncNoReusePool"}, 1),
    ("httpx", {"sync": "TrivialTransport", "async": "AsyncTrivialTransport"}, 0),
    ("httpx", {"pool-sync": "TrivialPool", "pool-async": "AsyncTrivialPool"}, 0),
    ("httpx", {"sync": "RawErrorTransport"}, 1),
    ("httpx", {"async": "AsyncRawErrorTransport"}, 1),
    ("psycopg", {"sync": "TrivialPool", "async": "AsyncTrivialPool"}, 0),
    ("psycopg", {"sync": "HidingPool", "async": "AsyncHidingPool"}, 0),
    ("psycopg", {"null-sync": "TrivialNullPool", "null-async": "AsyncTrivialNullPool"}, 0),
    ("psycopg", {"sync": "NoResetPool"}, 1),
    ("psycopg", {"async": "AsyncNoResetPool"}, 1),
    ("sqlalchemy", {"sync": "TrivialPool", "async": "AsyncTrivialPool"}, 0),
    ("sqlalchemy", {"sync": "NoOverflowPool"}, 1),
    ("sqlalchemy", {"sync": "KeepsPlacePool"}, 1),
    ("sqlalchemy", {"async": "AsyncForgetfulPool"}, 1),
)
MODULES = {"httpcore": "controls_http", "httpx": "controls_http"}


def check(argv: list[str]) -> int:
    """Run every case, quick; return 0 if all end as expected."""
    wanted = {argv[i + 1] for i, word in enumerate(argv[:-1]) if word == "--suite"}
    rest = [w for i, w in enumerate(argv) if w != "--suite" and (i == 0 or argv[i - 1] != "--suite")]
    wrong: list[str] = []
    for suite, classes, expected in CASES:
        if wanted and suite not in wanted:
            continue
        module = MODULES.get(suite, f"controls_{suite}")
        words = [word for role, cls in classes.items() for word in (f"--{role}", f"{module}:{cls}")]
        status = main(["--suite", suite, "--quick", *words, *rest])
        if status != expected:
            wrong.append(f"{suite} {' '.join(classes.values())}: exit status {status}, expected {expected}")
    for line in wrong:
        print(f"WRONG {line}")
    print("selfcheck: " + ("FAILED" if wrong else "ok"))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(check(sys.argv[1:]))
