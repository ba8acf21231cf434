"""Networks by name, each built with any normalisation layer."""
