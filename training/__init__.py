"""Training of the language model and of the three audio networks, at any size."""
