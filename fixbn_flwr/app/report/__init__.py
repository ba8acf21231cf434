"""The report of one or more runs: one HTML page that needs no network."""
