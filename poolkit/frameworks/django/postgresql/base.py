"""The database backend: Django's PostgreSQL backend with poolkit's pool."""

from __future__ import annotations

from typing import Any

from ....errors import ConfigError, MissingExtra

try:
    from django.core.exceptions import ImproperlyConfigured
    from django.db.backends.base.base import NO_DB_ALIAS
    from django.db.backends.postgresql import base as django_base
except ImportError as error:
    raise MissingExtra(
        "poolkit.frameworks.django needs Django 5.1 or newer with psycopg 3: pip install 'poolkit[django]'"
    ) from error

__all__ = ("DatabaseWrapper", "PoolkitPoolMixin")


class PoolkitPoolMixin:
    """Replaces ``pool`` of Django's PostgreSQL wrapper. For your own backend, put it before the base class::

        class DatabaseWrapper(PoolkitPoolMixin, django.contrib.gis.db.backends.postgis.base.DatabaseWrapper): ...

    ``OPTIONS["pool"]`` is a dict of arguments of :class:`poolkit_adapters.psycopg.PoolkitConnectionPool`
    (psycopg_pool's and all settings of :class:`poolkit.PoolConfig`). Missing or True: the defaults. False: no pool.
    """

    alias: str
    settings_dict: dict[str, Any]
    _connection_pools: dict[str, Any]
    _configure_connection: Any
    get_connection_params: Any

    @property
    def pool(self) -> Any:
        """The pool of this database, shared by the process. Raises ImproperlyConfigured for invalid settings."""
        given = self.settings_dict["OPTIONS"].get("pool", True)
        if self.alias == NO_DB_ALIAS or given is False or given is None:
            return None
        found = self._connection_pools.get(self.alias)
        if found is None:
            made = self._make_pool({} if given is True else given)
            found = self._connection_pools.setdefault(self.alias, made)
            if found is not made:  # another thread created it first
                made.poolkit.close()
        return found

    def close_pool(self) -> None:
        """Close the pool, if there is one. The next query creates another (Django's tests, a changed time zone)."""
        pool = self._connection_pools.pop(self.alias, None)
        if pool is not None:
            pool.close()
            pool.poolkit.close()  # also one that was never opened

    def _make_pool(self, arguments: dict[str, Any]) -> Any:
        from poolkit_adapters.psycopg import PoolkitConnectionPool

        if self.settings_dict.get("CONN_MAX_AGE", 0) != 0:
            raise ImproperlyConfigured(
                f"DATABASES[{self.alias!r}]: CONN_MAX_AGE={self.settings_dict['CONN_MAX_AGE']!r} keeps one connection "
                "in each thread, outside the pool; set it to 0"
            )
        checks = self.settings_dict.get("CONN_HEALTH_CHECKS")
        try:
            return PoolkitConnectionPool(
                **{
                    "name": f"django-{self.alias}",
                    "kwargs": {**self.get_connection_params(), "autocommit": True},  # Django sets it later
                    "open": False,
                    "configure": self._configure_connection,
                    "check": PoolkitConnectionPool.check_connection if checks else None,
                    **arguments,
                }
            )
        except (ConfigError, TypeError) as error:
            raise ImproperlyConfigured(f"DATABASES[{self.alias!r}]['OPTIONS']['pool']: {error}") from error


class DatabaseWrapper(PoolkitPoolMixin, django_base.DatabaseWrapper):  # type: ignore[misc]
    """The backend that ``ENGINE = "poolkit.frameworks.django.postgresql"`` selects."""
