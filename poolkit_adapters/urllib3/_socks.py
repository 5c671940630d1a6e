"""The manager for SOCKS proxies. Needs PySocks."""

from __future__ import annotations

import warnings

from .._errors import missing_extra
from ._manager import Managed

__all__ = ("PoolkitSOCKSProxyManager",)

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the error below says the same
        from urllib3.contrib.socks import SOCKSProxyManager
except ImportError as error:
    raise missing_extra("a SOCKS proxy", "PySocks", "urllib3,socks") from error


class PoolkitSOCKSProxyManager(Managed, SOCKSProxyManager):  # type: ignore[misc]
    """Replaces ``urllib3.contrib.socks.SOCKSProxyManager``. See :class:`.PoolkitPoolManager`."""
