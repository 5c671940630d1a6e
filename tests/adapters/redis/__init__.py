"""Tests of poolkit_adapters.redis."""
