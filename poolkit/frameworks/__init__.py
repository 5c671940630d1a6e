"""Pools in web frameworks and task queues: opened when a process starts to serve, drained when it stops.

One module for each framework: :mod:`.asgi` (Starlette, FastAPI and other frameworks with a lifespan), :mod:`.flask`,
:mod:`.celery`, :mod:`.django`. For pytest see :mod:`poolkit.testing.pytest`.
"""
