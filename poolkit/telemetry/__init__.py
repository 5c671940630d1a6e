"""Exporters for Prometheus, OpenTelemetry, statsd and structured logs, and alerts.

Each is a separate module, with its own extra if it needs one: ``poolkit.telemetry.prometheus``, ``.opentelemetry``,
``.statsd``, ``.logs``, ``.alerts``. None of them slows down an acquire that finds an idle connection, unless
documented.
"""
