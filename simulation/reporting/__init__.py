"""Tables and figures of recorded results."""
