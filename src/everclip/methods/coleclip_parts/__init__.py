"""The parts of CoLeCLIP: settings, vocabulary, losses."""
