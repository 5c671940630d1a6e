"""Requests to a server that misbehaves: how many get another request's reply, and how many are lost.

``python -m bench.strangers [--requests N] [--runner NAME] [--way NAME] [--own] [--seed N]`` sends N requests, spread
over all runners (threads, asyncio, uvloop if it is installed, trio) and ways (plain and TLS, unix sockets, proxies). A
fifth of the conversations are with a server that answers twice, answers HEAD with a body, hangs up, resets and so on,
with the answer or when the connection is idle. ``--own`` measures httpx's own transport. Exit status 1 if a reply was
another's.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import httpx

from poolkit.testing.servers import Certificates
from tests.support.strangers import HOW, RUNNERS, TLS_ONLY, WAYS, Misbehaving, StrangersReply, Talk, conversation, run

SPOILT_SHARE = 0.2
CONVERSATION = 5
"""Requests in each: the one that is answered in some way, and those after it."""


def measure(
    certificates: Certificates, runner: str, way: str, requests: int, seed: int = 0, *, own: bool = False
) -> Counter[str]:
    """Send ``requests`` in conversations of five over one client; the numbers of answers by kind."""
    dice = random.Random(f"{seed} {runner} {way}")
    kinds = [how for how in HOW if how != "well" and (way.startswith("https") or how not in TLS_ONLY)]
    found: Counter[str] = Counter()
    with Misbehaving(certificates, way) as server:

        async def main(talk: Talk) -> None:
            for _ in range(-(-requests // CONVERSATION)):
                how = dice.choice(kinds) if dice.random() < SPOILT_SHARE else "well"
                found["requests"] += CONVERSATION
                try:
                    await conversation(talk, server, how, dice.choice((0, 0, 8)), CONVERSATION - 1)
                except StrangersReply:
                    found["wrong"] += 1
                except httpx.HTTPError as error:
                    found[f"lost: {type(error).__name__}"] += 1
                else:
                    found["right"] += CONVERSATION

        if own:
            kind: Any = httpx.HTTPTransport if runner == "threads" else httpx.AsyncHTTPTransport
            RUNNERS[runner](main, kind(**server.options()))
        else:
            run(runner, server, main)
        found["connections"] = server.accepted
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all that is asked for and print a line for each."""
    here = [name for name in RUNNERS if name != "uvloop" or importlib.util.find_spec("uvloop")]
    parser = argparse.ArgumentParser(prog="python -m bench.strangers", description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000, help="total number of requests (default: 10000)")
    parser.add_argument("--runner", choices=here, action="append")
    parser.add_argument("--way", choices=WAYS, action="append")
    parser.add_argument("--own", action="store_true", help="use httpx's own transport")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    certificates = Certificates()
    pairs = [(runner, way) for runner in chosen.runner or here for way in chosen.way or WAYS]
    whole: Counter[str] = Counter()
    for runner, way in pairs:
        started = time.monotonic()
        found = measure(certificates, runner, way, -(-chosen.requests // len(pairs)), chosen.seed, own=chosen.own)
        whole += found
        print(f"{runner:8} {way:16} {describe(found)}  [{time.monotonic() - started:.1f} s]", flush=True)
    print(f"{'in all':25} {describe(whole)}")
    return 1 if whole["wrong"] else 0


def describe(found: Counter[str]) -> str:
    """One line."""
    lost = ", ".join(f"{name} {count}" for name, count in sorted(found.items()) if name.startswith("lost"))
    return (
        f"requests {found['requests']}, right {found['right']}, another's reply {found['wrong']}, "
        f"{lost or 'lost 0'}; connections {found['connections']}"
    )


if __name__ == "__main__":
    sys.exit(main())
