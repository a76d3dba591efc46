"""Selectors: decide which learned task an image belongs to, if any."""
