"""Tests of the adapters, each on its real driver and server."""
