"""The method of arXiv 2303.06530 in torch and numpy; nothing here imports Flower."""
