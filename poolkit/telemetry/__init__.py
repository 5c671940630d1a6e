"""Who watches: exporters for Prometheus, OpenTelemetry, statsd and structured logs, and alerts.

Each is a module of its own and needs its own extra: ``poolkit.telemetry.prometheus``, ``.opentelemetry``, ``.statsd``,
``.logs``, ``.alerts``. None of them makes an acquire that finds an idle connection slower, unless it says so.
"""
