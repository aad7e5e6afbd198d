"""How many callers one server carries at a promised TTFA: the highest rate that keeps the promise, by search."""
