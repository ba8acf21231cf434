"""The parts of the server app: the clients, the strategy, recorded rounds, resumed runs."""
