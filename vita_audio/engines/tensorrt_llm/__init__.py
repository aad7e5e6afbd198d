"""Backbone and MCTP as TensorRT-LLM engines: paging, packing and scheduling here, the engine call behind `executor.py`.

language_model.py   the LanguageModelEngine: rows of the scheduler -> packed steps -> tokens
layout.py           sizes and limits that both engines and their pool share
memory.py           bytes of blocks and streams
block_manager.py    which blocks of the pool a stream owns
packer.py           every tensor of a step, on the host
tensors.py          their names, types and shapes
staging.py          one copy of a step to the device
device_state.py     KV pool, hidden states, ids seen
engine.py           one engine: loaded, its inputs checked, enqueued
engine_record.py    what an engine's config.json says it was built for
reference_executor.py   executor in PyTorch (CPU): reads exactly what the engines read
session.py          executor over tensorrt_llm.runtime.Session: not run on a GPU yet
"""
