"""Opens ONNX Runtime sessions the way every CPU engine here wants them."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort

from vita_audio.contract.errors import EngineError


def open_session(path: Path, threads: int, any_length: bool = False) -> ort.InferenceSession:
    """A CPU session with `threads` intra-op threads that sleep, not spin, when idle (stages share the cores).

    Args:
        any_length: inputs have hundreds of different shapes. ONNX Runtime would keep a plan of its memory for each
            shape it has met, and an arena that fits none of them: a process that grows while new lengths come.

    Raises:
        EngineError: the file is missing or not a graph this runtime can load.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if any_length:
        options.enable_mem_pattern = options.enable_cpu_mem_arena = False
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise EngineError(f"{path}: ONNX Runtime cannot load it ({str(error).splitlines()[0]}); rebuild it") from error


def open_graph(path: Path, threads: int, any_length: bool = False) -> tuple[ort.InferenceSession, dict[str, str]]:
    """`open_session`, and what the graph says of itself.

    Raises:
        EngineError: too, when `build_engines` has not made it.
    """
    session = open_session(path, threads, any_length)
    metadata = session.get_modelmeta().custom_metadata_map
    if not metadata:
        raise EngineError(f"{path}: has no metadata, so it is not one of our graphs; rebuild the engines")
    return session, metadata
