"""Packed arrays and bounded replies between real machines."""
