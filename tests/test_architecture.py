"""The shape of the house: who may import whom, and what the decisions must not know."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import poolkit

ROOT = Path(poolkit.__file__).resolve().parent
ADAPTERS = ROOT.parent / "poolkit_adapters"

# innermost first; a module may import from its own ring and from those before it
RINGS: list[tuple[str, ...]] = [
    ("_text", "errors", "config", "events", "connector"),
    ("policies",),
    ("_core",),
    (
        "settings",
        "stats",
        "budget",
        "sizing",
        "runtimes",
        "_lifecycle",
        "_fast",
        "_picture",
        "_priority",
        "_log",
        "_timeouts",
        "_gate",
        "_outbox",
        "_sharing",
        "_watch",
        "_churn",
        "_dump",
        "_shell",
        "_leases",
        "_threads",
        "_async_jobs",
        "_thread_jobs",
        "_async",
    ),
    ("testing", "telemetry", "cluster", "fleet", "frameworks", "dashboard", "cli", "__main__"),
]
# what the decision core must not even mention
FORBIDDEN = {"time", "threading", "_thread", "asyncio", "trio", "socket", "logging", "select", "queue", "concurrent"}


def modules() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if "__pycache__" not in path.parts)


def ring_of(dotted: str) -> int | None:
    head = dotted.split(".")[0]
    for number, names in enumerate(RINGS):
        if head in names:
            return number
    return None


def imports(path: Path, package: str, *, lazy: bool = True) -> list[str]:
    """Absolute names of everything that a file imports (with ``lazy=False`` only what importing it imports)."""
    inside = path.relative_to(ROOT.parent if package == "" else ROOT).with_suffix("").parts
    base = (package, *inside) if package else inside
    found = []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree)) if lazy else list(_at_import(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                start = base[: len(base) - node.level] if path.name != "__init__.py" else base[: -node.level or None]
                prefix = ".".join(start)
                found += [f"{prefix}.{node.module}" if node.module else f"{prefix}.{a.name}" for a in node.names]
            else:
                found.append(node.module or "")
    return found


def _at_import(tree: ast.AST) -> list[ast.AST]:
    found: list[ast.AST] = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        found.append(node)
        found += _at_import(node)
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_import_only_from_their_own_ring_and_those_inside_it(path: Path) -> None:
    inside = path.relative_to(ROOT).with_suffix("").parts
    if inside == ("__init__",):
        return
    own = ring_of(inside[0])
    assert own is not None, f"{path.name} stands in no ring: name it in RINGS"
    for name in imports(path, "poolkit", lazy=False):
        if name.startswith("poolkit."):
            other = ring_of(name.removeprefix("poolkit."))
            assert other is not None, f"{name} stands in no ring"
            assert other <= own, f"{path.relative_to(ROOT)} (ring {own}) imports {name} (ring {other})"


@pytest.mark.parametrize(
    "path", [*sorted((ROOT / "_core").glob("*.py")), *sorted((ROOT / "policies").glob("*.py"))], ids=lambda p: p.stem
)
def test_decisions_know_no_clock_lock_thread_loop_or_log(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports(path, "poolkit")}
    assert not roots & FORBIDDEN
    assert not any(isinstance(node, ast.Await) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def test_the_engine_imports_nothing_but_the_standard_library() -> None:
    standard = sys.stdlib_module_names | {"poolkit"}
    for path in modules():
        ring = ring_of(path.relative_to(ROOT).with_suffix("").parts[0])
        if ring is not None and ring <= 3 and path.name != "trio_.py":
            roots = {name.split(".")[0] for name in imports(path, "poolkit", lazy=False)}
            assert roots <= standard, f"{path.name} imports {roots - standard}"


def test_only_the_runtimes_know_an_event_loop_library() -> None:
    for path in modules():
        ring = ring_of(path.relative_to(ROOT).with_suffix("").parts[0])
        if ring is not None and ring <= 3 and path.parent.name != "runtimes":
            roots = {name.split(".")[0] for name in imports(path, "poolkit")}
            assert not roots & {"asyncio", "trio", "anyio"}, path.name


def test_no_module_needs_an_adapter_before_it_is_used() -> None:
    for path in modules():
        roots = {name.split(".")[0] for name in imports(path, "poolkit", lazy=False)}
        assert "poolkit_adapters" not in roots, path.name


def test_adapters_import_only_public_names_and_never_each_other() -> None:
    drivers = {"sqlalchemy", "redis", "httpcore", "httpx", "psycopg", "dbapi"}
    for path in sorted(ADAPTERS.rglob("*.py")):
        inside = path.relative_to(ADAPTERS).with_suffix("").parts
        own = inside[0].lstrip("_").removesuffix("_async").removesuffix("_sync")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                name = node.module or ""
                private = any(part.startswith("_") for part in name.split(".")[1:])
                assert not (name.startswith("poolkit.") and private), f"{path.name} imports {name}"
            if isinstance(node, ast.ImportFrom) and node.level and node.module:
                head = node.module.split(".")[0]
                if own != "httpx":  # the one exception: httpx is a coat over httpcore
                    assert head not in drivers - {own}, f"{path.name} imports the adapter {head}"


def test_every_public_module_says_exactly_what_it_exports() -> None:
    for path in modules():
        if path.name == "__main__.py" or "servers" in path.parts or "cli" in path.parts:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        exported = [
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign)
            and any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets)
        ]
        if not exported:
            assert path.name == "__init__.py", f"{path.relative_to(ROOT)} has no __all__"
            continue
        defined = {
            node.name
            for node in tree.body
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("_")
        }
        if path.name != "__init__.py" and not path.stem.startswith("_") and path.parent.name != "_core":
            missing = {name for name in defined if name not in exported[0]}
            internal = {
                "overridden", "require_connect", "require_kind", "nearest", "unknown", "masked", "remembered",
            }  # fmt: skip
            assert not missing - internal, f"{path.relative_to(ROOT)}: {missing} neither exported nor private"


def test_importing_poolkit_brings_only_what_a_pool_for_threads_needs() -> None:
    """No event loop, TLS, log or random numbers for those who have no use for them; AsyncPool comes when asked for."""
    program = (
        "import sys, poolkit\n"
        "heavy = {'asyncio', 'trio', 'ssl', 'socket', 'logging', 'random', 'pathlib', 'difflib', 'subprocess'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert poolkit.AsyncPool is poolkit.AsyncPool\n"
        "assert 'asyncio' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT.parent)


AS_IMPORTED = {
    ("_churn.py", "Lock"),  # held for a few lines that never switch
    ("_churn.py", "local"),
    ("psycopg/_counters.py", "get_ident"),  # one page for all greenlets of a thread is right, and does not pile up
}


def test_what_gevent_replaces_is_looked_up_when_it_is_used() -> None:
    """Bound at import, it would be the original in a program that patches later: a lock that blocks every greenlet."""
    replaced = {"threading", "_thread", "time", "select", "socket", "queue", "ssl", "subprocess", "signal"}
    harmless = {"LifoQueue", "monotonic", "perf_counter", "TIMEOUT_MAX"}  # classes to compare with, clocks, numbers
    bound = set()
    for root in (ROOT, ADAPTERS):
        for path in root.rglob("*.py"):
            name = path.relative_to(root).as_posix()
            if name.startswith(("cli/", "testing/")):
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module in replaced:
                    bound |= {(name, alias.name) for alias in node.names if alias.name not in harmless}
    assert bound == AS_IMPORTED
