"""RAIL: the method, and ridge regression on frozen features in closed form. Nothing is imported here."""
