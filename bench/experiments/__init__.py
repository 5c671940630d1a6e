"""What is measured: each module's ``run(bench)`` takes the subjects in turn and adds numbers."""

__all__ = ()
