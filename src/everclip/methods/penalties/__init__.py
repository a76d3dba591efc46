"""The slot `penalties`: named losses that are added to a task's own, to keep what the model knew."""
