"""Executor over `tensorrt_llm.runtime.Session`. **Not run**: written from facts/tensorrt_llm.md where there is no GPU.

Pinned to tensorrt_llm 1.2.1, the last release with engines. One process, one GPU, tensor parallel 1. Both engines are
enqueued on one CUDA stream, so a burst starts when the backbone step before it is done, with no word from the host.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vita_audio.engines.tensorrt_llm.executor import Tensors
from vita_audio.engines.tensorrt_llm.layout import Layout
from vita_audio.engines.tensorrt_llm.memory import PoolSizes
from vita_audio.engines.tensorrt_llm.tensors import BACKBONE_INPUTS, MCTP_INPUTS
from vita_audio.errors import EngineError

VERSION = "1.2.1"


class SessionExecutor:
    """`Executor` over engines as `Engine.save` writes them.

    Args:
        folder: holds backbone/ and (K > 0) mctp/, each with config.json and rank0.engine.
        layout: sizes; checked against what the engines were built for.
        device: index of the GPU.

    Raises:
        EngineError: tensorrt_llm is missing or of another version, an engine file is missing, an engine was built for
            other sizes, or the GPU has too little memory left for the streams of the layout.
    """

    def __init__(self, folder: Path, layout: Layout, device: int = 0) -> None:
        session = _session_class()
        self.layout = layout
        self.device = torch.device("cuda", device)
        torch.cuda.set_device(self.device)  # engines are loaded onto the current one
        self._stream = torch.cuda.Stream(self.device)
        config = layout.config
        self._backbone = _Engine(session, folder / "backbone", BACKBONE_INPUTS, layout, config.backbone_layers)
        modules = config.mctp_modules
        self._mctp = _Engine(session, folder / "mctp", MCTP_INPUTS, layout, modules) if modules else None
        rows = self._mctp.input_shape("seen")[1] if self._mctp else layout.head_rows
        if rows != layout.head_rows:
            raise EngineError(
                f"{folder / 'mctp'}: its head has {rows} rows, head_first_id {layout.head_first_id} asks for "
                f"{layout.head_rows}; use the head_first_id it was built with"
            )
        self.hidden_dtype = self._backbone.dtype
        self.kv_dtype = self._backbone.kv_dtype
        with self.stream():
            shape = (layout.max_num_tokens, config.hidden_size)
            self._hidden = torch.empty(shape, dtype=self.hidden_dtype, device=self.device)
            self._logits = torch.empty(layout.slots, config.vocab_size, device=self.device)
            shape = (layout.slots, config.mctp_modules)
            self._tokens = torch.empty(shape, dtype=torch.int32, device=self.device)
        free, _ = torch.cuda.mem_get_info(self.device)
        kv_bytes, hidden_bytes = self.kv_dtype.itemsize, self.hidden_dtype.itemsize
        sizes = PoolSizes(config, kv_bytes, hidden_bytes, layout.tokens_per_block)
        sizes.check_fit(layout.slots, layout.context, free)  # the pool is allocated next

    def stream(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._stream)

    def backbone(self, inputs: Tensors) -> tuple[Tensor, Tensor]:
        logits = self._logits[: len(inputs["last_token_ids"])]
        hidden = self._hidden[: len(inputs["input_ids"])]
        self._backbone.enqueue(inputs, {"logits": logits, "hidden_states_all": hidden}, self._stream)
        return logits, hidden

    def mctp(self, inputs: Tensors) -> Tensor:
        if self._mctp is None:
            raise EngineError("burst: this checkpoint has no MCTP modules (K = 0)")
        tokens = self._tokens[: len(inputs["last_token_ids"])]
        self._mctp.enqueue(inputs, {"mctp_tokens": tokens}, self._stream)
        return tokens


class _Engine:
    """One deserialised engine: checked once, then enqueued."""

    def __init__(self, session: Any, folder: Path, known: frozenset[str], layout: Layout, layers: int) -> None:
        self._folder = folder
        try:
            record = json.loads((folder / "config.json").read_text())
            plan = (folder / "rank0.engine").read_bytes()
        except (OSError, ValueError) as error:
            raise EngineError(f"{folder}: engine not readable ({error}); rebuild with --target gpu") from error
        check_record(folder, record, layout, layers)
        pretrained = record["pretrained_config"]
        self.dtype: torch.dtype = getattr(torch, pretrained["dtype"])
        kv_algorithm = (pretrained.get("quantization") or {}).get("kv_cache_quant_algo")
        self.kv_dtype = torch.int8 if kv_algorithm == "FP8" else self.dtype  # bytes: only the plugin reads them
        try:
            self._session = session.from_serialized_engine(plan)
        except AttributeError as error:  # TensorRT gives None for a plan it refuses
            raise EngineError(
                f"{folder}: TensorRT cannot load rank0.engine (its log says why); rebuild on this GPU and container"
            ) from error
        engine = self._session.engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        # TensorRT wants an address of an empty tensor too (none of the rows samples); PyTorch gives such a tensor none.
        self._nothing = torch.zeros(1, device="cuda")
        self._inputs = [name for name in names if engine.get_tensor_mode(name).name == "INPUT"]
        unknown = set(self._inputs) - known
        missing = known - set(self._inputs) - {"position_ids"}  # nothing reads it: TensorRT may have dropped it
        if unknown or missing:
            raise EngineError(
                f"{folder}: the engine's inputs do not fit this version: unknown {sorted(unknown)}, missing "
                f"{sorted(missing)}; rebuild with --target gpu"
            )

    def input_shape(self, name: str) -> tuple[int, ...]:
        """Shape of an input as it was built; -1 for a free dimension."""
        return tuple(self._session.engine.get_tensor_shape(name))

    def enqueue(self, inputs: Tensors, outputs: Mapping[str, Tensor], stream: torch.cuda.Stream) -> None:
        """Raises EngineError when a shape is outside what the engine was built for, or the runtime refuses."""
        bound = {name: inputs[name] for name in self._inputs}
        try:
            self._session.set_shapes(bound)
        except ValueError as error:
            raise EngineError(f"{self._folder}: {error}; rebuild with larger limits") from error
        addressed = {name: tensor if tensor.numel() else self._nothing for name, tensor in bound.items()}
        if not self._session.run(addressed, dict(outputs), stream.cuda_stream):
            raise EngineError(f"{self._folder}: TensorRT refused the step; its log says why")


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


def check_record(folder: Path, record: dict[str, Any], layout: Layout, layers: int) -> None:
    """What the engine's config.json says against what the layout asks for, and the layers of this part.

    Raises:
        EngineError: with every fault.
    """
    try:
        build, size = record["build_config"], record["build_config"]["plugin_config"]["tokens_per_block"]
        limits = {field: build[field] for field in ("max_batch_size", "max_seq_len", "max_num_tokens")}
        version, ranks = record["version"], record["pretrained_config"]["mapping"]["world_size"]
        found = record["pretrained_config"]["num_hidden_layers"]
    except KeyError as error:
        raise EngineError(f"{folder}/config.json: {error} is missing; rebuild with --target gpu") from error
    needed = {
        "max_batch_size": layout.slots,
        "max_seq_len": layout.context,
        "max_num_tokens": layout.max_num_tokens,
    }
    faults = [f"{f} is {limits[f]}, must be at least {needed[f]}" for f in limits if limits[f] < needed[f]]
    if version != VERSION:
        faults.append(f"version is {version}, must be {VERSION}")
    if found != layers:
        faults.append(f"num_hidden_layers is {found}, must be {layers}")
    if ranks != 1:
        faults.append(f"world_size is {ranks}, must be 1")
    if size != layout.tokens_per_block:
        faults.append(f"tokens_per_block is {size}, must be {layout.tokens_per_block}")
    if faults:
        raise EngineError(f"{folder}: built for something else: {'; '.join(faults)}; rebuild with --target gpu")
