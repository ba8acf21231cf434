"""The logger of this package, a child of Flower's, so that its lines appear beside Flower's own."""

import logging

logger = logging.getLogger("flwr.fixbn")
