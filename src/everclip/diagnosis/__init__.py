"""Two models side by side: what a model cannot see, and what changed between two models."""
