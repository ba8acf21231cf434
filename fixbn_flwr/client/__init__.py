"""FixBN on the client: the training context, the momentum store and the client mods."""
