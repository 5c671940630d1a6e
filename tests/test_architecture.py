"""The shape of the house: who may import whom, and what the decisions must not know."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import poolkit

ROOT = Path(poolkit.__file__).resolve().parent
ADAPTERS = ROOT.parent / "poolkit_adapters"

# innermost first; a module may import from its own ring and from those before it
RINGS: list[tuple[str, ...]] = [
    ("_text", "_numbers", "errors", "config", "events", "connector"),
    ("policies",),
    ("_core",),
    (
        "settings",
        "stats",
        "budget",
        "sizing",
        "runtimes",
        "_registry",
        "_fast",
        "_access",
        "_priority",
        "_deadline",
        "_log",
        "_gate",
        "_listeners",
        "_membership",
        "_budget_members",
        "_operations",
        "_places",
        "_driver",
        "_monitor",
        "_register",
        "_leases",
        "_watchdog",
        "_misuse",
        "_dump",
        "_begin",
        "_pool_base",
        "_slow_path",
        "_housekeeping",
        "_warm_up",
        "_shutdown",
        "_binding",
        "_threads",
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
    drivers = {
        "sqlalchemy",
        "redis",
        "valkey",
        "httpcore",
        "httpcore2",
        "httpx",
        "httpx2",
        "psycopg",
        "asyncpg",
        "dbapi",
        "urllib3",
        "requests",
    }
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
                if own not in ("httpx", "httpx2", "requests"):  # wrappers around httpcore and urllib3
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
                "overridden", "require_connect", "require_kind", "nearest", "unknown", "masked",
                "name_missing_descriptor", "name_own_thread", "remembered", "cannot_connect",
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


def test_one_module_registers_a_fork_handler_so_that_the_order_is_known() -> None:
    users = [
        path.relative_to(root.parent).as_posix()
        for root in (ROOT, ADAPTERS)
        for path in sorted(root.rglob("*.py"))
        if "os.register_at_fork(" in path.read_text(encoding="utf-8")
    ]
    assert users == ["poolkit/runtimes/fork.py"]


AS_IMPORTED = {
    ("_misuse.py", "Lock"),  # held for a few lines that never switch
    ("_misuse.py", "local"),
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


# Sizes of classes, those of their bases (of our own) included ---------------------------------------------------------

MOST_METHODS, MOST_LINES, MOST_LEVELS = 25, 300, 1

TOO_LARGE: dict[str, tuple[int, int]] = {
    "poolkit/_async.py:AsyncPool": (36, 272),
    "poolkit/_threads.py:Pool": (35, 283),
    "poolkit/testing/connectors.py:AsyncFakeConnector": (33, 256),
    "poolkit/testing/connectors.py:FakeConnector": (33, 264),
    "poolkit/testing/servers/http.py:HTTPServer": (34, 313),
    "poolkit/testing/servers/postgres.py:PostgresServer": (46, 477),
    "poolkit/testing/servers/redis.py:RedisSentinel": (28, 264),
    "poolkit/testing/servers/redis.py:RedisServer": (35, 340),
    "poolkit/testing/servers/redis.py:_ClusterNode": (36, 353),
}
"""Classes beyond the bounds today, with their methods and lines. The numbers and the list may only shrink."""

TOO_DEEP: dict[str, int] = {}
"""Classes of the engine with more than one level of bases of our own today. The numbers may only shrink."""


class Shape(NamedTuple):
    methods: int
    lines: int
    levels: int


def shapes() -> dict[str, Shape]:
    """Each class by "file:Class", with the methods and lines of itself and its bases, and the levels of bases.

    A base is one of our own if it is defined in the same file or imported from ours; anything else is a library's.
    A TypedDict (``total=``) is no class in this sense: it declares keywords.
    """
    found: dict[str, ast.ClassDef] = {}
    origins: dict[
        str, dict[str, str]
    ] = {}  # of each file: the names that it imports from ours, and where they are from
    for root in (ROOT, ADAPTERS):
        for path in sorted(root.rglob("*.py")):
            if path.is_symlink():  # of httpx2: the same file as httpx's
                continue
            file = path.relative_to(root.parent).as_posix()
            origins[file] = {}
            package = path.relative_to(root.parent).parts[:-1]
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    if not any(keyword.arg == "total" for keyword in node.keywords):
                        found[f"{file}:{node.name}"] = node
                elif isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("poolkit")):
                    start = package[: len(package) - node.level + 1] if node.level else ()
                    module = "/".join([*start, *(node.module or "").split(".")]).strip("/")
                    origins[file] |= {alias.asname or alias.name: f"{module}:{alias.name}" for alias in node.names}

    def resolved(file: str, name: str, hops: int = 5) -> str | None:
        """The class that ``name`` means in ``file``, through packages that hand it on; None: a library's."""
        if f"{file}:{name}" in found:
            return f"{file}:{name}"
        if hops == 0 or name not in origins.get(file, {}):
            return None
        module, _, original = origins[file][name].partition(":")
        return next(
            (one for end in (".py", "/__init__.py") if (one := resolved(module + end, original, hops - 1))), None
        )

    def bases(name: str) -> list[str]:
        chosen = []
        for base in found[name].bases:
            base = base.value if isinstance(base, ast.Subscript) else base
            one = resolved(name.partition(":")[0], base.id) if isinstance(base, ast.Name) else None
            if one is not None and one != name:
                chosen.append(one)
        return chosen

    def line(name: str) -> list[str]:
        ordered = [name]
        for base in bases(name):
            ordered += [one for one in line(base) if one not in ordered]
        return ordered

    def levels(name: str) -> int:
        # errors are meant to be a tree
        own = [base for base in bases(name) if not base.startswith("poolkit/errors.py")]
        return max((1 + levels(base) for base in own), default=0)

    return {
        name: Shape(
            sum(
                isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef))
                for one in line(name)
                for part in found[one].body
            ),
            sum((found[one].end_lineno or 0) - found[one].lineno + 1 for one in line(name)),
            levels(name),
        )
        for name in found
    }


def in_engine(name: str) -> bool:
    """Whether a class is of the engine: the rings up to the shells, errors excepted."""
    file = name.partition(":")[0]
    ring = ring_of(file.removeprefix("poolkit/").removesuffix(".py").replace("/", "."))
    return file.startswith("poolkit/") and ring is not None and ring <= 3 and file != "poolkit/errors.py"


def test_a_class_with_its_bases_has_at_most_25_methods_and_300_lines() -> None:
    now = shapes()
    beyond = {name: one for name, one in now.items() if one.methods > MOST_METHODS or one.lines > MOST_LINES}
    for name, one in beyond.items():
        methods, lines = TOO_LARGE.get(name, (MOST_METHODS, MOST_LINES))
        assert one.methods <= max(methods, MOST_METHODS), f"{name}: {one.methods} methods; take a part out of it"
        assert one.lines <= max(lines, MOST_LINES), f"{name}: {one.lines} lines; take a part out of it"


def test_the_engine_has_one_level_of_own_inheritance() -> None:
    beyond = {name: one.levels for name, one in shapes().items() if one.levels > MOST_LEVELS and in_engine(name)}
    for name, levels in beyond.items():
        assert levels <= TOO_DEEP.get(name, MOST_LEVELS), f"{name}: {levels} levels; let it have a part instead"


def test_no_method_of_an_adapter_waits_for_a_child_to_implement_it() -> None:
    """A class that needs something from its kind owns a part that does it."""
    found = [
        f"{path.relative_to(ADAPTERS)}:{node.lineno}"
        for path in sorted(ADAPTERS.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Raise) and node.exc is not None and "NotImplementedError" in ast.dump(node.exc)
    ]
    assert not found


def test_keywords_are_declared_in_groups_side_by_side() -> None:
    """A reader sees from its one line of bases which keywords a class takes: no group is made from other groups."""
    for root in (ROOT, ADAPTERS):
        for path in sorted(root.rglob("*.py")):
            groups = {
                node.name: [ast.unparse(base) for base in node.bases]
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                if isinstance(node, ast.ClassDef) and any(keyword.arg == "total" for keyword in node.keywords)
            }
            for name, bases in groups.items():
                nested = [base for base in bases if groups.get(base, ["TypedDict"]) != ["TypedDict"]]
                assert not nested, f"{path.name}: {name} has {nested}, which has bases itself"


# Conditions on features in the core -----------------------------------------------------------------------------------

FEATURES = {
    "classes": {"classes", "caller_class"},
    "budget": {"permits"},
    "keyed": {"keyed"},
    "multiplexed": {"multiplexed"},
    "elastic size": {"scaler", "autoscale"},
    "connect in caller": {"connect_in_caller", "by_caller", "lazy"},
    "suspended": {"suspended", "fail_fast"},
}
"""A feature, and the names by which the core asks whether a pool has it."""

MOST_CONDITIONS = 38


def operands(test: ast.expr) -> Iterator[ast.expr]:
    if isinstance(test, ast.BoolOp):
        for value in test.values:
            yield from operands(value)
    elif isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        yield from operands(test.operand)
    else:
        yield test


def conditions() -> list[str]:
    """Each place where the core asks whether a pool has a feature: "file:line feature"."""
    found = set()
    for path in sorted((ROOT / "_core").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            tests: list[ast.expr] = []
            if isinstance(node, (ast.If, ast.IfExp, ast.While, ast.Assert)):
                tests = [node.test]
            elif isinstance(node, ast.comprehension):
                tests = node.ifs
            elif isinstance(node, ast.BoolOp):
                tests = [node]
            for operand in (one for test in tests for one in operands(test)):
                parts = list(ast.walk(operand))
                names = {part.attr for part in parts if isinstance(part, ast.Attribute)}
                names |= {part.id for part in parts if isinstance(part, ast.Name)}
                place = f"{path.name}:{operand.lineno}:{operand.col_offset}"
                found |= {f"{place} {feature}" for feature, words in FEATURES.items() if words & names}
    return sorted(found)


def test_the_core_chooses_parts_and_asks_seldom_which_features_a_pool_has() -> None:
    """What a feature changes belongs into a part of its own, with a null object for pools that do not have it."""
    found = conditions()
    assert len(found) <= MOST_CONDITIONS, f"{len(found)}:\n" + "\n".join(found)


# Files on the path of a connect ---------------------------------------------------------------------------------------

MOST_FILES = {"works": 18, "fails": 26}
"""Files of poolkit with a function that runs in the first lease of a pool, by whether its connect works. In the caller
and in the thread that connects. The numbers may only shrink; ``docs/architecture.md`` names the files.
"""

FIRST_LEASE = """
import os, sys, threading
import poolkit

root = os.path.dirname(poolkit.__file__) + os.sep
files = set()

def note(frame, event, argument):
    mine = threading.current_thread().name != "poolkit-housekeeping"
    if mine and event == "call" and frame.f_code.co_filename.startswith(root):
        files.add(frame.f_code.co_filename[len(root):].replace(os.sep, "/"))

class Trivial:
    def connect(self, timeout):
        if sys.argv[1] == "fails":
            raise ConnectionRefusedError("nobody listens")
        return object()

backoff = poolkit.BackoffConfig(base=60.0, cap=60.0)  # one attempt is counted, not the next one
pool = poolkit.Pool(Trivial(), max_size=2, backoff=backoff, random=lambda: 1.0)
threading.setprofile(note)  # the thread that connects is started for the first connect of the process
sys.setprofile(note)
try:
    lease = pool.lease(timeout=60.0 if sys.argv[1] == "works" else 0.2)
except poolkit.AcquireTimeout:
    assert sys.argv[1] == "fails"
sys.setprofile(None)
print(*sorted(files.copy()))
"""


@pytest.mark.parametrize("connect", MOST_FILES)
def test_the_path_of_a_connect_leads_through_few_files(connect: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", FIRST_LEASE, connect], check=True, cwd=ROOT.parent, capture_output=True, text=True
    )
    files = ran.stdout.split()
    assert {"_driver.py", "_core/opener.py"} <= set(files)  # else nothing was counted
    assert len(files) <= MOST_FILES[connect], f"{len(files)}: {files}"
