"""A process per node that outlives Flower's process per message."""
