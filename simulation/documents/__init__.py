"""Tables and figures of the documentation, from the committed results."""
