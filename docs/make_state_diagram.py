"""Draws ``docs/states.svg`` from the engine's own table, ``poolkit._core.slots.TRANSITIONS``.

``python docs/make_state_diagram.py`` writes the picture, ``--check`` only says whether it agrees (exit code 1 if
not). Where the states stand and what the arrows are called is said here; which arrows there are, the table says:
a state or a move that is not named here, or named here and not in the table, is an error.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

from poolkit._core.slots import ESTABLISHED, TRANSITIONS, State

PICTURE = Path(__file__).resolve().parent / "states.svg"
WIDTH, HEIGHT = 960, 590
BOX = (132, 44)

PLACES = {
    State.CONNECTING: (100, 270),
    State.IDLE: (340, 160),
    State.CHECKING: (620, 200),
    State.IN_USE: (340, 380),
    State.RESETTING: (620, 340),
    State.CLOSING: (870, 270),
    State.CLOSED: (100, 520),
}

# what makes the move; and how far the arrow bends to its left, where the label sits along it (0 to 1)
MOVES: dict[tuple[State, State], tuple[str, float, float]] = {
    (State.CONNECTING, State.IDLE): ("nobody waits", 0, 0.45),
    (State.CONNECTING, State.IN_USE): ("for a request", 0, 0.45),
    (State.CONNECTING, State.CLOSING): ("no longer wanted", 460, 0.5),
    (State.CONNECTING, State.CLOSED): ("connect failed", 0, 0.5),
    (State.IDLE, State.IN_USE): ("acquired", 30, 0.3),
    (State.IN_USE, State.IDLE): ("released", 30, 0.3),
    (State.IDLE, State.CHECKING): ("in doubt", 26, 0.5),
    (State.CHECKING, State.IDLE): ("sound", 26, 0.55),
    (State.CHECKING, State.IN_USE): ("sound, for its caller", 0, 0.2),
    (State.IN_USE, State.RESETTING): ("released, touched", 26, 0.5),
    (State.RESETTING, State.IN_USE): ("clean, for a request", 26, 0.5),
    (State.RESETTING, State.IDLE): ("clean", 0, 0.2),
    (State.IDLE, State.CLOSING): ("old, idle for long, surplus, cleared", 175, 0.45),
    (State.CHECKING, State.CLOSING): ("dead", 0, 0.45),
    (State.IN_USE, State.CLOSING): ("broken, discarded, dropped", -165, 0.5),
    (State.RESETTING, State.CLOSING): ("reset failed", 0, 0.4),
    (State.IN_USE, State.CLOSED): ("detached", 0, 0.5),
    (State.CLOSING, State.CLOSED): ("closed", 260, 0.5),
}

STYLE = """
  .box { fill: #fff; stroke: #546e7a; stroke-width: 1.5 }
  .established { fill: #e8f1f5 }
  .state { font: 600 15px sans-serif; fill: #263238; text-anchor: middle; dominant-baseline: central }
  .move { fill: none; stroke: #78909c; stroke-width: 1.3 }
  .label { font: 12px sans-serif; fill: #37474f; text-anchor: middle; dominant-baseline: central;
           stroke: #fff; stroke-width: 4px; paint-order: stroke }
"""


def edge(centre: tuple[float, float], toward: tuple[float, float]) -> tuple[float, float]:
    """Where a line from the middle of a box to ``toward`` leaves the box."""
    dx, dy = toward[0] - centre[0], toward[1] - centre[1]
    half = (BOX[0] / 2 + 3, BOX[1] / 2 + 3)
    scale = min(half[0] / abs(dx) if dx else math.inf, half[1] / abs(dy) if dy else math.inf)
    return centre[0] + dx * scale, centre[1] + dy * scale


def arrow(old: State, new: State) -> list[str]:
    label, bend, along = MOVES[old, new]
    (x1, y1), (x2, y2) = PLACES[old], PLACES[new]
    length = math.hypot(x2 - x1, y2 - y1)
    nx, ny = (y2 - y1) / length, -(x2 - x1) / length  # to the left of the way, on a page whose y runs down
    cx, cy = (x1 + x2) / 2 + nx * bend, (y1 + y2) / 2 + ny * bend
    sx, sy = edge((x1, y1), (cx, cy))
    ex, ey = edge((x2, y2), (cx, cy))
    t = along
    lx = (1 - t) ** 2 * sx + 2 * t * (1 - t) * cx + t**2 * ex
    ly = (1 - t) ** 2 * sy + 2 * t * (1 - t) * cy + t**2 * ey
    return [
        (
            f'<path class="move" d="M {sx:.1f} {sy:.1f} Q {cx:.1f} {cy:.1f} {ex:.1f} {ey:.1f}" marker-end="url(#tip)">'
            f"<title>{old.value} to {new.value}: {label}</title></path>"
        ),
        f'<text class="label" x="{lx:.1f}" y="{ly:.1f}">{label}</text>',
    ]


def box(state: State) -> list[str]:
    x, y = PLACES[state]
    extra = " established" if state in ESTABLISHED else ""
    return [
        (
            f'<rect class="box{extra}" x="{x - BOX[0] / 2:g}" y="{y - BOX[1] / 2:g}" '
            f'width="{BOX[0]}" height="{BOX[1]}" rx="8"/>'
        ),
        f'<text class="state" x="{x}" y="{y}">{state.value}</text>',
    ]


def drawn() -> str:
    moves = {(old, new) for old, targets in TRANSITIONS.items() for new in targets}
    if moves != set(MOVES) or set(State) != set(PLACES):
        raise SystemExit(
            f"the table and this script differ: {moves ^ set(MOVES)} {set(State) ^ set(PLACES)}; "
            "name the states and moves here"
        )
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            'aria-label="The states of a connection and the moves between them">'
        ),
        "<!-- made by docs/make_state_diagram.py from poolkit._core.slots.TRANSITIONS: do not edit -->",
        f"<style>{STYLE}</style>",
        (
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
            '<path d="M 0 0 L 8 4 L 0 8 z" fill="#78909c"/></marker></defs>'
        ),
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    arrows = [arrow(old, new) for old in TRANSITIONS for new in State if new in TRANSITIONS[old]]
    parts += [path for path, _ in arrows]
    for state in State:
        parts += box(state)
    parts += [text for _, text in arrows]
    return "\n".join([*parts, "</svg>", ""])


def main(arguments: list[str]) -> int:
    new = drawn()
    if "--check" in arguments:
        same = PICTURE.exists() and PICTURE.read_text(encoding="utf-8") == new
        if not same:
            print(f"{PICTURE} does not agree with poolkit/_core/slots.py: run python docs/make_state_diagram.py")
        return int(not same)
    PICTURE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
