"""Use the model of a run: load it, predict with it, export it."""
