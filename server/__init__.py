"""The launcher: finds, checks, assembles, starts, supervises and drains a Triton server on the model repository."""
