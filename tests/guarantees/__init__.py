"""The table of promises: each cell of ``docs/guarantees.md`` is a test."""
