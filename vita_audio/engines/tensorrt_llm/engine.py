"""One TensorRT-LLM engine: loaded from its file, its inputs checked once, then enqueued. **Not run on a GPU yet.**"""

from __future__ import annotations

from collections.abc import Mapping
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vita_audio.contract.errors import EngineError
from vita_audio.engines.tensorrt_llm.executor import Tensors


class Engine:
    """An engine as `Engine.save` of TensorRT-LLM writes it.

    Args:
        session: `tensorrt_llm.runtime.Session`.
        folder: holds rank0.engine.
        known: names of the inputs that this version fills.
        device: where it runs; the current one.

    Raises:
        EngineError: the file is missing, TensorRT refuses it, or it has other inputs.
    """

    def __init__(self, session: Any, folder: Path, known: frozenset[str], device: torch.device) -> None:
        self._folder = folder
        self._session = _load(session, folder / "rank0.engine")
        # TensorRT wants an address of an empty tensor too (none of the rows samples); PyTorch gives such a tensor none.
        self._nothing = torch.zeros(1, device=device)
        engine = self._session.engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
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

    def enqueue(self, inputs: Tensors, outputs: Mapping[str, Tensor], stream: int) -> None:
        """Enqueue on a CUDA stream, given by its handle; returns without waiting.

        Raises:
            EngineError: a shape is outside what the engine was built for, or the runtime refuses.
        """
        bound = {name: inputs[name] for name in self._inputs}
        try:
            self._session.set_shapes(bound)
        except ValueError as error:
            raise EngineError(f"{self._folder}: {error}; rebuild with larger limits") from error
        addressed = {name: tensor if tensor.numel() else self._nothing for name, tensor in bound.items()}
        if not self._session.run(addressed, dict(outputs), stream):
            raise EngineError(f"{self._folder}: TensorRT refused the step; its log says why")


def _load(session: Any, path: Path) -> Any:
    """The file is mapped, not read: TensorRT takes any buffer, and one of our own would double the memory it takes."""
    try:
        with path.open("rb") as file:
            plan = mmap(file.fileno(), 0, access=ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: nothing in it
        raise EngineError(f"{path}: engine not readable ({error}); rebuild with --target gpu") from error
    with plan:
        try:
            return session.from_serialized_engine(plan)
        except AttributeError as error:  # TensorRT gives None for a plan it refuses
            raise EngineError(
                f"{path}: TensorRT cannot load it (its log says why); rebuild on this GPU and container"
            ) from error
