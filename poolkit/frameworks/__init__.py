"""Pools in web frameworks and task queues: opened when the process begins to serve, drained when it ends.

One module for each: :mod:`.asgi` (Starlette, FastAPI and whatever else has a lifespan), :mod:`.flask`, :mod:`.celery`,
:mod:`.django`. For pytest there is :mod:`poolkit.testing.pytest`.
"""
