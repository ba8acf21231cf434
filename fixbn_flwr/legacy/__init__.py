"""FixBN around a strategy of Flower's older generation (``flwr.server.strategy``)."""

from fixbn_flwr.legacy.strategy import FixBN

__all__ = ["FixBN"]
