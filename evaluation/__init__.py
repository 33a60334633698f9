"""The reported number, and predictions on disk."""
