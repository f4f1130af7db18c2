"""`ctseg serve`: the server, a private PACS, and who may use them."""
