"""An index of images for search: add, remove, query, and follow the model to its next version."""
