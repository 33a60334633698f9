"""Pages that people look at: the network in a browser."""
