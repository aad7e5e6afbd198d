"""TensorRT-LLM 1.2.1 networks of the language model: `backbone` and `mctp` (facts: docs/tensorrt_llm.md 8).

Nothing here imports tensorrt_llm until an engine is built or a dry run is asked for.
"""
