"""Starts a Triton server on the model repository (launcher), and what the models' adapters share (`adapter.py`)."""
