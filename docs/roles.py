"""Makes links of the ``:class:`~poolkit.Pool``` of the docstrings (an extension of griffe, see mkdocs.yml)."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":(?:class|meth|func|mod|attr|data):`(~?)([\w.]+)`")
DOUBLE = re.compile(r"``([^`\n]+)``")
LITERAL = re.compile(r"::\n\n(?=    )")


def _link(match: re.Match[str]) -> str:
    short, name = match.groups()
    title = name.rpartition(".")[2] if short else name
    if "." not in name.strip("."):
        return f"`{title}`"
    return f'<autoref optional identifier="{name}"><code>{title}</code></autoref>'


class Roles(Extension):
    """Converts reStructuredText roles, double backticks and "::" into Markdown before the docstrings are parsed."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring is not None:
            text = ROLE.sub(_link, obj.docstring.value)
            obj.docstring.value = LITERAL.sub(":\n\n", DOUBLE.sub(r"`\1`", text))
