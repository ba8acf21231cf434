"""Handwritten digits in a federation: the server, the client, and what they train."""
