"""Put one class in the place of another in every module of a library, and count who is used.

Runs inside the driver's pytest process, before any test module is imported: code that says
``from library import Pool`` afterwards gets the new class. Functions that keep the old class as the default of
an argument, and library classes that inherit from it, are changed too.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

# Prefixes of the names under which classes are counted: the library's own where they should be gone, and ours.
STOCK = "stock "
OURS = "ours "

counts: dict[str, list[int]] = {}  # name -> [instances made, times used]
notes: list[str] = []


def load(spec: str) -> Any:
    """Import ``package.module:Class``."""
    module, _, name = spec.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def wanted() -> dict[str, Any]:
    """Load the classes asked for, by role; called before any swap, so they may build on the stock ones."""
    return {role: load(spec) for role, spec in json.loads(os.environ.get("CONF_CLASSES") or "{}").items()}


def modules_of(*packages: str) -> Iterator[types.ModuleType]:
    """Yield the loaded modules of these top-level packages."""
    for name, module in sorted(sys.modules.items()):
        if module is not None and name.split(".")[0] in packages:
            yield module


def _functions(module: types.ModuleType) -> Iterator[types.FunctionType]:
    for value in list(vars(module).values()):
        if isinstance(value, types.FunctionType):
            yield value
        elif isinstance(value, type) and value.__module__ == module.__name__:
            for member in list(vars(value).values()):
                inner = getattr(member, "__func__", member)
                while isinstance(inner, types.FunctionType):
                    yield inner
                    inner = getattr(inner, "__wrapped__", None)  # decorators hide the defaults


def put_everywhere(old: Any, new: Any, *packages: str) -> int:
    """Replace ``old`` in module attributes and in the defaults of functions; return in how many places."""
    places = 0
    for module in modules_of(*packages):
        for key, value in list(vars(module).items()):
            if value is old:
                setattr(module, key, new)
                places += 1
        for function in _functions(module):
            if function.__defaults__ and any(d is old for d in function.__defaults__):
                function.__defaults__ = tuple(new if d is old else d for d in function.__defaults__)
                places += 1
            for key, value in list((function.__kwdefaults__ or {}).items()):
                if value is old:
                    function.__kwdefaults__[key] = new
                    places += 1
    return places


def _with_class_cell(function: Any, new: type) -> Any:
    """Return the same function with its ``__class__`` cell (``super()`` without arguments) showing new."""
    if not isinstance(function, types.FunctionType) or "__class__" not in function.__code__.co_freevars:
        return function
    cells = tuple(
        types.CellType(new) if name == "__class__" else cell
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    )
    copy = types.FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, cells)
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__qualname__ = function.__qualname__
    return copy


def rebase(sub: type, old: type, new: type, *packages: str) -> str:
    """Make ``sub``, a library class that inherits from ``old``, inherit from ``new``; return how."""
    bases = tuple(new if base is old else base for base in sub.__bases__)
    try:
        sub.__bases__ = bases
        return f"{sub.__name__} rebased"
    except TypeError:  # another memory layout: build another class
        space = {k: v for k, v in vars(sub).items() if k not in ("__dict__", "__weakref__")}
        made = type(new)(sub.__name__, bases, space)
        for key, value in space.items():
            setattr_value = _with_class_cell(value, made)
            if setattr_value is not value:
                setattr(made, key, setattr_value)
        put_everywhere(sub, made, *packages)
        return f"{sub.__name__} rebuilt"


def counted(cls: type, name: str, method: str, unless: type | tuple[type, ...] | None = None) -> None:
    """Count the instances of ``cls`` and the calls of its ``method``, in ``counts[name]``.

    ``unless``: instances of these are somebody else's, though they inherit from ``cls``.
    """
    tally = counts.setdefault(name, [0, 0])
    new: Callable[..., Any] = cls.__new__
    used: Callable[..., Any] = getattr(cls, method)
    others = () if unless is None else unless

    # Not __init__: SQLAlchemy reads the names of its parameters, and a pool may be made by a plain call of it.
    def __new__(kind: type, *args: Any, **kwargs: Any) -> Any:
        if not issubclass(kind, others):
            tally[0] += 1
        return new(kind) if new is object.__new__ else new(kind, *args, **kwargs)

    @functools.wraps(used)  # drivers and their tests look at names and signatures
    def use(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(self, others):
            tally[1] += 1
        return used(self, *args, **kwargs)

    cls.__new__ = __new__  # type: ignore[method-assign,assignment]
    setattr(cls, method, use)


def swap(
    role: str,
    old: type,
    new: type,
    method: str,
    *packages: str,
    mine: tuple[type, ...] = (),
    rebasing: bool = True,
) -> None:
    """Put ``new`` in the place of ``old``; count both.

    Args:
        role: which class this is.
        old: the library's own.
        new: the class under test.
        method: its calls are counted as uses.
        *packages: the library's top-level packages.
        mine: further classes whose instances do not count as stock.
        rebasing: whether the library's subclasses of ``old`` get ``new`` as their base.
    """
    name = f"{old.__module__}.{old.__qualname__}"
    subs = [
        sub
        for sub in old.__subclasses__()
        if rebasing and sub.__module__.split(".")[0] in packages and not issubclass(new, sub) and sub is not new
    ]
    places = put_everywhere(old, new, *packages)
    how = [rebase(sub, old, new, *packages) for sub in subs]
    title = f"{new.__module__}.{new.__qualname__}"
    counted(new, f"{OURS}{role}: {title}", method)
    counted(old, f"{STOCK}{name}", method, unless=(new, *mine))
    notes.append(", ".join([f"{name} -> {title} in {places} places", *how]))
