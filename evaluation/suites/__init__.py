"""Readers of published benchmarks: a folder in the layout of its publication -> cases. No data comes along."""
