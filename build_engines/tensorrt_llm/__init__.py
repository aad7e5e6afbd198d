"""Released checkpoint -> TensorRT-LLM checkpoints `backbone/` and `mctp/`. Needs neither a GPU nor TensorRT-LLM."""
