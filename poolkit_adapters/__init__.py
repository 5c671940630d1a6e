"""Adapters: one module for each driver, imported only on request.

=====================================  ==================================================================
module                                 replaces
=====================================  ==================================================================
``poolkit_adapters.sqlalchemy``        ``QueuePool``, ``AsyncAdaptedQueuePool`` (``poolclass=``)
``poolkit_adapters.redis``             ``redis.BlockingConnectionPool`` and its asyncio twin
``poolkit_adapters.valkey``            ``valkey.BlockingConnectionPool`` and its asyncio twin
``poolkit_adapters.httpcore``          ``httpcore.ConnectionPool``, ``AsyncConnectionPool``
``poolkit_adapters.httpx``             ``httpx.Client``, ``AsyncClient``, ``HTTPTransport``, ...
``poolkit_adapters.httpcore2``         ``httpcore2.ConnectionPool``, ``AsyncConnectionPool``
``poolkit_adapters.httpx2``            ``httpx2.Client``, ``AsyncClient``, ``HTTPTransport``, ...
``poolkit_adapters.psycopg``           ``psycopg_pool.ConnectionPool``, ``AsyncConnectionPool``
``poolkit_adapters.asyncpg``           ``asyncpg.create_pool``, ``asyncpg.Pool``
``poolkit_adapters.urllib3``           ``urllib3.PoolManager``, ``ProxyManager``, ...
``poolkit_adapters.requests``          ``requests.adapters.HTTPAdapter``
``poolkit_adapters.dbapi``             any PEP 249 module
=====================================  ==================================================================

For several servers: ``PoolkitCluster`` (sqlalchemy, psycopg), ``PoolkitServerGroup`` (redis, valkey),
``PoolkitClusterTransport`` (httpx, httpx2), and their asynchronous twins.
"""
