"""The run config: its keys, defaults and rules."""
