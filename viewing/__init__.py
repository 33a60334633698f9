"""What can be looked at, and how it is drawn."""
