"""Places where a namespace's blocks live."""
