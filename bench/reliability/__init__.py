"""What callers see when the network or a server fails, with poolkit's classes and with the drivers' own pools.

``python -m bench.reliability`` runs it; docs/reliability.md says what is measured.
"""
