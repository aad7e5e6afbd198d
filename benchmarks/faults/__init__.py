"""The fault campaign: what callers see when a part of the server dies, stops, is flooded or sent nonsense."""
