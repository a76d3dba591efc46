"""CoLeCLIP: the method, its settings, its vocabulary and its losses. Nothing is imported here."""
