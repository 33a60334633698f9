"""Pages that people look at: the report of a run."""
