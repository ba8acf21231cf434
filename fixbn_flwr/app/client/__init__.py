"""The app's client and the configuration of its node."""
