"""Makes the description for package indexes from ``README.md``.

A package index shows the text without the files around it, so links to files of the repository would be dead there.
Each such link becomes its text. The marks that ``tests/test_docs.py`` reads are removed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

MARK = re.compile(r"^<!-- .*? -->\n+", re.MULTILINE)
LINK = re.compile(r"\[([^\]]+)\]\((?!\w+:|#)[^)]+\)")


def described(readme: str) -> str:
    """Return the text of the README for a place that has none of the repository's files."""
    return LINK.sub(r"\1", MARK.sub("", readme))


class Description(MetadataHookInterface):
    """Sets the project's ``readme``."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Called by hatchling."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": described(text)}
