"""Settings for a user's data and model: measured where that is cheap, else by rule, each with its reason."""
