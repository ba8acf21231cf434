"""Experiments and measurements; run them from the repository's root."""
