"""Pages that people look at: the report of scores, the network in a browser."""
