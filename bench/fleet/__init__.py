"""A fleet of processes under one limit, for as long as one likes: ``python -m bench.fleet``."""
