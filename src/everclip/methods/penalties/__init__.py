"""The slot `penalties`: named losses that keep the model near an earlier model."""
