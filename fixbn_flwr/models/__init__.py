"""Networks, each built with any normalisation layer."""
