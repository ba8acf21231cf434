"""Experiments and measurements, run from the repository's root: `python -m simulation.benchmark`."""
