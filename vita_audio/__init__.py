"""VITA-Audio: what the system computes, knowing nothing of Triton. See docs/structure.md for the map."""
