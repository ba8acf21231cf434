"""Warnings of Flower that say nothing about a run of this app."""

_ROUTINE = (
    "Since flwr 1.32, default simulated SuperNodes changed",
    "fraction_evaluate is set to 0.0",
    "Manually terminating ClientAppActor",
)


def is_routine(text: str) -> bool:
    """Return whether a log message is one of them."""
    return text.startswith(_ROUTINE)
