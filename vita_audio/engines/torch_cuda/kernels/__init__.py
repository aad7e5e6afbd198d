"""Fused operations of a program: a file for each, with its PyTorch reference beside its GPU kernel."""
