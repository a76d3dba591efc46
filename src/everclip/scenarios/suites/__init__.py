"""Sets that any scenario can name as its retention suite (YAML): `retention: imagenet-shifts`."""
