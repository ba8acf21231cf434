"""One worker process per node, which outlives Flower's processes per message."""
