"""The run directory: what is read from it and how it is queried."""
