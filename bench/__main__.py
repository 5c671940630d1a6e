"""``python -m bench [EXPERIMENT ...]`` is ``poolkit bench``; needs the extra ``bench``."""

import sys

from poolkit.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
