"""Backbone and MCTP in PyTorch with fixed shapes: CUDA graphs on a GPU, the same code run eagerly on a CPU."""
