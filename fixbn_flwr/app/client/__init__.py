"""The app's client and its node's config."""
