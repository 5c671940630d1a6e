"""``python -m tests.processes.family METHOD KIND URL``: a pool made at module level, used by parent and children."""

from __future__ import annotations

import json
import multiprocessing
import sys
from typing import Any

from tests.processes.subjects import make

METHOD, KIND, URL = sys.argv[1:4] if len(sys.argv) > 3 else ("", "", "")
subject: Any = make(KIND, URL) if KIND else None


def work(arguments: tuple[str, str]) -> list[str]:
    """In a child: two uses of the pool, made here unless it was inherited."""
    global subject
    if subject is None:
        subject = make(*arguments)
    return [subject.use(), subject.use()]


def main() -> None:
    before = [subject.use(), subject.use()]
    with multiprocessing.get_context(METHOD).Pool(2) as children:
        inside = children.map(work, [(KIND, URL)] * 4)
        children.close()
        children.join()
    after = [subject.use(), subject.use()]
    subject.close()
    sys.stdout.write(json.dumps({"before": before, "inside": inside, "after": after}))


if __name__ == "__main__":
    main()
