"""``python -m poolkit`` is the command ``poolkit``."""

import sys

from poolkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
