"""Tests of poolkit_adapters.asyncpg."""
