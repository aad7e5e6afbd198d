"""Exporters of ONNX graphs, a network a file. Nothing is imported here: a stage depends on its own network alone."""
