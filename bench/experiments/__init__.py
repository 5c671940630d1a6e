"""The experiments: ``run(bench)`` of each module measures the subjects in turns and adds numbers."""

__all__ = ()
