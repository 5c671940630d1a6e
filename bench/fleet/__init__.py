"""A fleet of processes under one limit with random faults: ``python -m bench.fleet``."""
