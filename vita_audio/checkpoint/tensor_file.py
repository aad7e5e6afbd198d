"""Writes a safetensors file tensor by tensor, so that no more than one is in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

#: Names of dtypes in safetensors headers.
DTYPE_NAMES = {
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int8: "I8",
}


#: Tensor -> shape and type, in the order of the file.
Outline = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


def file_header(outline: Outline) -> tuple[bytes, dict[str, int]]:
    """The bytes before the first tensor, and where in the file each tensor begins."""
    fields: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts, position = {}, 0
    for name, (shape, dtype) in outline.items():
        start, position = position, position + prod(shape) * dtype.itemsize
        fields[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [start, position]}
        starts[name] = start
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants the data aligned
    header = len(text).to_bytes(8, "little") + text
    return header, {name: len(header) + start for name, start in starts.items()}


class RankFile:
    """A safetensors file whose header is written first; tensors follow in any order.

    Args:
        path: the file, overwritten.
        outline: tensor -> shape and dtype.
    """

    def __init__(self, path: Path, outline: Outline) -> None:
        self._missing = dict(outline)
        header, self._starts = file_header(outline)
        self._file = path.open("wb")
        self._file.write(header)

    def write(self, name: str, tensor: Tensor) -> int:
        """Write one tensor of the outline; returns its bytes. Raises ValueError for one it does not name, or twice."""
        if self._missing.pop(name, None) != (tuple(tensor.shape), tensor.dtype):
            raise ValueError(f"{name}: {list(tensor.shape)} {tensor.dtype} is not what the outline holds")
        content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
        self._file.seek(self._starts[name])
        self._file.write(content)
        return content.nbytes

    def __enter__(self) -> RankFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is None and self._missing:
            raise ValueError(f"{', '.join(self._missing)} never written")
