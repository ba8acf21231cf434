"""``python -m fixbn_flwr`` is the command ``fixbn``."""

from fixbn_flwr.app.cli import main

if __name__ == "__main__":
    main()
