"""Executor over `tensorrt_llm.runtime.Session`. From docs/tensorrt_llm.md, **not run on a GPU yet**.

Pinned to tensorrt_llm 1.2.1, the last release with engines. One process, one GPU, tensor parallel 1. Both engines are
enqueued on one CUDA stream, so a burst starts when the backbone step before it is done, with no word from the host.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vita_audio.contract.errors import EngineError
from vita_audio.engines.gpu_room import room_bytes
from vita_audio.engines.tensorrt_llm.engine import Engine
from vita_audio.engines.tensorrt_llm.engine_record import VERSION, read_pair
from vita_audio.engines.tensorrt_llm.executor import Tensors
from vita_audio.engines.tensorrt_llm.layout import Layout
from vita_audio.engines.tensorrt_llm.memory import PoolSizes
from vita_audio.engines.tensorrt_llm.tensors import MCTP_INPUTS, backbone_inputs


class SessionExecutor:
    """`Executor` over engines as `Engine.save` writes them.

    Args:
        folder: holds backbone/ and (K > 0) mctp/, each with config.json and rank0.engine.
        layout: sizes; checked against what the engines were built for.
        device: index of the GPU.
        bytes_beside: memory of the GPU that all else of the server takes (`GpuRecord.bytes_beside_slots`).

    Raises:
        EngineError: tensorrt_llm is missing or of another version, an engine file is missing, an engine was built for
            other sizes or for another pool than its fellow, or the GPU has too little memory left for the streams of
            the layout.
    """

    def __init__(self, folder: Path, layout: Layout, device: int = 0, bytes_beside: int = 0) -> None:
        session = _session_class()
        backbone, mctp = read_pair(folder, layout)  # takes no time, engines do
        self.layout = layout
        self.device = torch.device("cuda", device)
        torch.cuda.set_device(self.device)  # engines are loaded onto the current one
        self._stream = torch.cuda.Stream(self.device)
        config = layout.config
        self._backbone = Engine(session, backbone.folder, backbone_inputs(layout.embedded), self.device)
        self._mctp = Engine(session, mctp.folder, MCTP_INPUTS, self.device) if mctp else None
        rows = self._mctp.input_shape("seen")[1] if self._mctp else layout.head_rows
        if rows != layout.head_rows:
            raise EngineError(
                f"{folder / 'mctp'}: its head has {rows} rows, head_first_id {layout.head_first_id} asks for "
                f"{layout.head_rows}; use the head_first_id it was built with"
            )
        self.hidden_dtype, self.kv_dtype = backbone.hidden_dtype, backbone.kv_dtype
        with self.stream():
            shape = (layout.max_num_tokens, config.hidden_size)
            self._hidden = torch.empty(shape, dtype=self.hidden_dtype, device=self.device)
            self._logits = torch.empty(layout.slots, config.vocab_size, device=self.device)
            shape = (layout.slots, config.mctp_modules)
            self._tokens = torch.empty(shape, dtype=torch.int32, device=self.device)
        room = room_bytes(*torch.cuda.mem_get_info(self.device), bytes_beside)
        kv_bytes, hidden_bytes = self.kv_dtype.itemsize, self.hidden_dtype.itemsize
        sizes = PoolSizes(config, kv_bytes, hidden_bytes, layout.tokens_per_block)
        sizes.check_fit(layout.slots, layout.context, room)  # the pool is allocated next

    def stream(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._stream)

    def backbone(self, inputs: Tensors) -> tuple[Tensor, Tensor]:
        logits = self._logits[: len(inputs["last_token_ids"])]
        hidden = self._hidden[: len(inputs["input_ids"])]
        self._backbone.enqueue(inputs, {"logits": logits, "hidden_states_all": hidden}, self._stream.cuda_stream)
        return logits, hidden

    def mctp(self, inputs: Tensors) -> Tensor:
        if self._mctp is None:
            raise EngineError("burst: this checkpoint has no MCTP modules (K = 0)")
        tokens = self._tokens[: len(inputs["last_token_ids"])]
        self._mctp.enqueue(inputs, {"mctp_tokens": tokens}, self._stream.cuda_stream)
        return tokens


def _session_class() -> Any:
    try:
        import tensorrt_llm
        from tensorrt_llm.runtime import Session
    except ImportError as error:
        raise EngineError(
            f"tensorrt_llm {VERSION} is not installed ({error}); serve from the pinned TensorRT-LLM container"
        ) from error
    if tensorrt_llm.__version__ != VERSION:
        raise EngineError(f"tensorrt_llm is {tensorrt_llm.__version__}, must be {VERSION}; use the pinned container")
    return Session
