"""Draws ``docs/house.svg``, the modules of the engine and what they stand on, from the imports in the source.

``python docs/make_house_diagram.py`` writes the picture, ``--check`` only tells whether it agrees with the source (exit
code 1 if not). A module stands above everything that it imports. An arrow that follows from others is left out: if A
imports B and C, and B imports C, only A to B and B to C are drawn. Vocabulary and policies, which all may import, and
the packages around the engine are bars without arrows.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "house.svg"

VOCABULARY = ("errors", "config", "events", "connector", "_text", "_numbers")
ASIDE = ("__init__", "__main__", "_log", "_dump", "_priority")
"""Not drawn: the package's own front, and helpers of a few lines."""
AROUND = ("cluster", "fleet", "telemetry", "dashboard", "frameworks", "cli", "testing")

WIDTH, MARGIN, GAP = 1500, 24, 12
ROW, BOX, BAR = 84, 30, 40
STYLE = """
  .box { fill: #fff; stroke: #546e7a; stroke-width: 1.3 }
  .core { fill: #e8f1f5 }
  .bar { fill: #f4f6f7; stroke: #b0bec5 }
  .name { font: 13px sans-serif; fill: #263238; text-anchor: middle; dominant-baseline: central }
  .arrow { fill: none; stroke: #90a4ae; stroke-width: 1 }
"""

Graph = dict[str, set[str]]


def engine() -> dict[str, Path]:
    """The modules that are drawn as boxes, by name."""
    found = {}
    for path in sorted((ROOT / "poolkit").glob("*.py")):
        if path.stem not in VOCABULARY + ASIDE:
            found[path.stem] = path
    for path in sorted((ROOT / "poolkit" / "_core").glob("*.py")):
        if path.stem != "__init__":
            found[f"_core.{path.stem}"] = path
    found["runtimes"] = ROOT / "poolkit" / "runtimes" / "base.py"
    return found


def imported(path: Path) -> set[str]:
    """What importing a module imports of poolkit, as dotted names without "poolkit."; not what functions import."""
    package = path.relative_to(ROOT / "poolkit").parent.parts
    found: set[str] = set()

    def walk(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.ImportFrom) and child.level:
                base = package[: len(package) - child.level + 1]
                names = [child.module] if child.module else [alias.name for alias in child.names]
                found.update(".".join([*base, name]) for name in names)
                if child.module:  # "from ._core import commands" imports a module of that package
                    found.update(".".join([*base, child.module, alias.name]) for alias in child.names)
            walk(child)

    walk(ast.parse(path.read_text(encoding="utf-8")))
    return found


def graph() -> Graph:
    """What each module imports, arrows that follow from others left out."""
    modules = engine()
    full: Graph = {
        name: {
            other
            for other in modules
            if other != name and any(one == other or one.startswith(f"{other}.") for one in imported(path))
        }
        for name, path in modules.items()
    }

    def below(name: str, seen: frozenset[str] = frozenset()) -> set[str]:
        if name in seen:
            raise SystemExit(f"modules import each other: {sorted(seen)}")
        return full[name].union(*(below(other, seen | {name}) for other in full[name]))

    return {name: others - set[str]().union(*(below(other) for other in others)) for name, others in full.items()}


def rows(arrows: Graph) -> list[list[str]]:
    """The modules from the bottom upwards, each above what it imports, those of a row near what they stand on."""
    heights: dict[str, int] = {}

    def height(name: str) -> int:
        if name not in heights:
            heights[name] = max((height(other) + 1 for other in arrows[name]), default=0)
        return heights[name]

    found: list[list[str]] = [[] for _ in range(max(map(height, arrows)) + 1)]
    for name in sorted(arrows):
        found[heights[name]].append(name)
    place = {name: (at + 0.5) / len(found[0]) for at, name in enumerate(found[0])}
    for row in found[1:]:
        row.sort(key=lambda name: (sum(place[other] for other in sorted(arrows[name])) / len(arrows[name]), name))
        place.update({name: (at + 0.5) / len(row) for at, name in enumerate(row)})
    return found


def bar(top: float, text: str) -> list[str]:
    return [
        f'<rect class="box bar" x="{MARGIN}" y="{top:g}" width="{WIDTH - 2 * MARGIN}" height="{BAR}" rx="6"/>',
        f'<text class="name" x="{WIDTH / 2:g}" y="{top + BAR / 2:g}">{text}</text>',
    ]


def drawn() -> str:
    arrows = graph()
    floors = rows(arrows)
    policies = sorted(path.stem for path in (ROOT / "poolkit" / "policies").glob("*.py") if path.stem != "__init__")
    first = MARGIN + 2 * (BAR + GAP) + 20
    bottom = first + len(floors) * ROW
    total = bottom + 2 * (BAR + GAP) + MARGIN
    boxes: dict[str, tuple[float, float, float]] = {}
    for number, floor in enumerate(floors):
        cell = (WIDTH - 2 * MARGIN) / len(floor)
        for at, name in enumerate(floor):
            width = min(cell - GAP, 22 + 7.6 * len(name))
            boxes[name] = (MARGIN + cell * (at + 0.5), bottom - (number + 1) * ROW + BOX, width)
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {total:g}" role="img" '
            'aria-label="The modules of the engine, each above those that it imports">'
        ),
        "<!-- made by docs/make_house_diagram.py from the imports: do not edit -->",
        f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{total:g}" fill="#fff"/>',
        *bar(MARGIN, "poolkit_adapters: one driver each, on public names only"),
        *bar(MARGIN + BAR + GAP, "around the engine: " + ", ".join(AROUND)),
    ]
    for name in sorted(arrows):
        x, y, _ = boxes[name]
        for other in sorted(arrows[name]):
            to_x, to_y, _ = boxes[other]
            half = (to_y - y) / 2
            parts.append(
                f'<path class="arrow" d="M {x:.1f} {y + BOX:.1f} C {x:.1f} {y + BOX + half / 2:.1f} '
                f'{to_x:.1f} {to_y - half / 2:.1f} {to_x:.1f} {to_y:.1f}"><title>{name} imports {other}</title></path>'
            )
    for name, (x, y, width) in boxes.items():
        kind = " core" if name.startswith("_core.") else ""
        parts += [
            f'<rect class="box{kind}" x="{x - width / 2:.1f}" y="{y:g}" width="{width:.1f}" height="{BOX}" rx="6"/>',
            f'<text class="name" x="{x:.1f}" y="{y + BOX / 2:g}">{name.removeprefix("_core.")}</text>',
        ]
    parts += bar(bottom + GAP, "policies: " + ", ".join(policies))
    parts += bar(bottom + BAR + 2 * GAP, "vocabulary: " + ", ".join(VOCABULARY))
    return "\n".join([*parts, "</svg>", ""])


def main(arguments: list[str]) -> int:
    new = drawn()
    if "--check" in arguments:
        same = PICTURE.exists() and PICTURE.read_text(encoding="utf-8") == new
        if not same:
            print(f"{PICTURE.name} does not agree with the imports: run python docs/make_house_diagram.py")
        return int(not same)
    PICTURE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
