"""A federation on this machine: a Flower Grid whose clients run in worker processes."""
