"""FixBN around a Message API strategy (``flwr.serverapp.strategy``)."""
