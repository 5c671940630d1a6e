"""Measurements. Every speed claim is a ratio of two things measured in the same run, turn by turn.

``python -m bench [EXPERIMENT ...]`` measures the engine and the adapters beside the drivers' own pools. Only ratios
within one run mean anything on a machine that others use too; so everything that is claimed is one.

experiments/ (what is measured) · peers, async_peers, dummies, answering (on what) · turns, load (how) · result (the
numbers) · figures (the arithmetic) · targets (what is aimed at) · tables, plots, page (how it is shown) · suite, main

Commands of their own: elastic, fleet, reliability, soak, strangers, closed_sessions, dashboard, repro_*.
"""
