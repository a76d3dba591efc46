"""Selectors: which of the tasks learned so far a picture belongs to, if any."""
