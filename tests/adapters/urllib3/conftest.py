"""These tests need urllib3 and requests."""

from __future__ import annotations

import importlib.util

collect_ignore_glob = [] if all(map(importlib.util.find_spec, ("urllib3", "requests"))) else ["test_*.py"]
