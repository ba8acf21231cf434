"""The folder of a run: creation, files, summary and figure."""
