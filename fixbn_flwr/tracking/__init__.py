"""Log a run to TensorBoard, MLflow or Weights & Biases, through their own libraries.

The app does it by ``track="tensorboard,mlflow"``; in your own ServerApp use :class:`Tracking`.
"""

from fixbn_flwr.tracking.tracking import Tracking

__all__ = ["Tracking"]
