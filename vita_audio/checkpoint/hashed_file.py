"""Writes a safetensors file front to back and hashes it on the way: drawing, copying, hashing and writing overlap."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from vita_audio.checkpoint.file_records import FileRecord
from vita_audio.checkpoint.tensor_file import Outline, file_header

#: Bytes that are copied, hashed and written at a time, and how many such pieces may be under way.
_PIECE_BYTES, _PIECES = 32 << 20, 4


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
    header, _ = file_header(outline)
    waiting = iter(outline.items())
    with _HashedFile(path, header) as file:
        for name, tensor in tensors:
            if (name, (tuple(tensor.shape), tensor.dtype)) != next(waiting, None):
                raise ValueError(f"{name}: {list(tensor.shape)} {tensor.dtype} is not the next tensor of the outline")
            file.write(tensor.detach().contiguous().reshape(-1).view(torch.uint8))
            del tensor  # before the next is drawn
        missing = [name for name, _ in waiting]
        if missing:
            raise ValueError(f"{', '.join(missing)} never written")
    return file.record
