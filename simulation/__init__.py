"""Experiments, reports and benchmarks. Run them from the repository's root."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
