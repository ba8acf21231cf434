"""The logger of this package, a child of Flower's: its lines appear among Flower's own."""

import logging

logger = logging.getLogger("flwr.fixbn")

_LONGEST = 2000  # characters


def shortened(text: str) -> str:
    """Return what a client said, cut to a length that a log can hold."""
    if len(text) <= _LONGEST:
        return text
    return f"{text[:_LONGEST]}... ({len(text):,} characters in all)"
