"""Writes safetensors files front to back, tensor by tensor, so that no more than one is in memory.

`RankFile` is open while its tensors are made; `write_tensors` draws, copies, hashes and writes at the same time.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from vita_audio.checkpoint.file_records import FileRecord

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
#: Bytes that are copied, hashed and written at a time, and how many such pieces may be under way.
_PIECE_BYTES, _PIECES = 32 << 20, 4


def file_header(outline: Outline) -> bytes:
    """The bytes before the first tensor."""
    fields: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, (shape, dtype) in outline.items():
        start, position = position, position + prod(shape) * dtype.itemsize
        fields[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [start, position]}
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants the data aligned
    return len(text).to_bytes(8, "little") + text


class _Expected:
    """The tensors of an outline that are still to come."""

    def __init__(self, outline: Outline) -> None:
        self._waiting = iter(outline.items())

    def take(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor as bytes. Raises ValueError when it is not the next of the outline."""
        if (name, (tuple(tensor.shape), tensor.dtype)) != next(self._waiting, None):
            raise ValueError(f"{name}: {list(tensor.shape)} {tensor.dtype} is not the next tensor of the outline")
        return tensor.detach().contiguous().reshape(-1).view(torch.uint8)

    def check_end(self) -> None:
        if missing := [name for name, _ in self._waiting]:
            raise ValueError(f"{', '.join(missing)} never written")


class RankFile:
    """A safetensors file that is written while others are, one for each rank.

    Args:
        path: the file, overwritten.
        outline: tensor -> shape and dtype; `write` takes them in this order.
    """

    def __init__(self, path: Path, outline: Outline) -> None:
        self._expected = _Expected(outline)
        self._file = path.open("wb")
        self._file.write(file_header(outline))

    def write(self, name: str, tensor: Tensor) -> int:
        """Write the next tensor; returns its bytes. Raises ValueError when it is not the next of the outline."""
        return self._file.write(self._expected.take(name, tensor).numpy().data)

    def __enter__(self) -> RankFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is None:
            self._expected.check_end()


class _HashedFile:
    """A new file that begins with `header`. `write` takes bytes on any device and returns when they may change."""

    def __init__(self, path: Path, header: bytes) -> None:
        self._file = path.open("wb")
        self._digest, self._bytes = hashlib.sha256(header), self._file.write(header)
        # One thread each: both are strictly in order, and release the interpreter while they work.
        self._hashing, self._writing = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._busy: deque[tuple[Tensor, Future[None], Future[int]]] = deque()

    def write(self, content: Tensor) -> None:
        """`content`: uint8 [bytes]. Raises OSError when an earlier piece could not be written."""
        for piece in content.split(_PIECE_BYTES):
            buffer = self._free_buffer(pinned=content.is_cuda)
            view = buffer[: len(piece)].copy_(piece).numpy().data
            self._bytes += len(piece)
            jobs = self._hashing.submit(self._digest.update, view), self._writing.submit(self._file.write, view)
            self._busy.append((buffer, *jobs))

    @property
    def record(self) -> FileRecord:
        """For afterwards."""
        return FileRecord(self._digest.hexdigest(), self._bytes)

    def _free_buffer(self, pinned: bool) -> Tensor:
        if len(self._busy) < _PIECES:
            return torch.empty(_PIECE_BYTES, dtype=torch.uint8, pin_memory=pinned)
        return self._finished()

    def _finished(self) -> Tensor:
        """Wait for the oldest piece; its buffer."""
        buffer, hashed, written = self._busy.popleft()
        hashed.result()
        written.result()
        return buffer

    def __enter__(self) -> _HashedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while self._busy and kind is None:
                self._finished()
        finally:
            self._hashing.shutdown()
            self._writing.shutdown()
            self._file.close()


def write_tensors(path: Path, outline: Outline, tensors: Iterable[tuple[str, Tensor]]) -> FileRecord:
    """Write tensors of any device, one after the other; no more than one, and a few buffers, is in host memory.

    Args:
        path: overwritten.
        outline: tensor -> shape and type.
        tensors: those of the outline, in its order.

    Returns:
        Hash and size of the file.

    Raises:
        ValueError: a tensor that is not the next of the outline, or one too few.
    """
    expected = _Expected(outline)
    with _HashedFile(path, file_header(outline)) as file:
        for name, tensor in tensors:
            file.write(expected.take(name, tensor))
            del tensor  # before the next is drawn
        expected.check_end()
    return file.record
