"""``poolkit bench``: the engine and the adapters beside the drivers' own pools, turn by turn, in one run.

Only ratios within one run mean anything on a machine that others use too; so everything that is claimed is one.

experiments/ (what is measured) · peers, async_peers, dummies, answering (on what) · turns, load (how) · result (the
numbers) · figures (the arithmetic) · targets (what is aimed at) · tables, plots, page (how it is shown) · suite, main
"""

from __future__ import annotations

__all__ = ()
