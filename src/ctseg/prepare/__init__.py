"""A collection becomes a data folder: checked pairs and the ledger of their split."""
