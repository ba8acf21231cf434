"""The Flower app: run config, server app, client app, run folders and the command line."""
