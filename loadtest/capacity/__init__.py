"""How much one server carries: search for the highest rate, a small model of what was seen, predictions from it."""
