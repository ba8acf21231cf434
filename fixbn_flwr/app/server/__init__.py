"""The server app's parts: clients by partition, recorded rounds, resumed runs."""
