"""Weight files (safetensors, sharded or single, and torch files): read, naming every fault, and written."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vita_audio.contract.errors import CheckpointError

Shapes = dict[str, tuple[int, ...]]

INDEX_NAME, SINGLE_NAME = "model.safetensors.index.json", "model.safetensors"
LISTED = 8  # names an error shows for each kind of fault
_START_BYTES = 24  # tell what a file is
_POINTER = b"version https://git-lfs"  # how what a clone without git-lfs has in place of a large file begins
#: What `torch.load` raises for files that are damaged, cut or hold code; the last four for cut files of the older form.
_TORCH_LOAD_ERRORS = (
    pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError,
    struct.error, IndexError, TypeError, AssertionError,
)  # fmt: skip


@dataclass(slots=True)
class Weights:
    """What weight files hold: shapes at once, tensors on demand, and the faults found while opening them."""

    source: str
    shapes: Shapes = field(default_factory=dict)
    readers: dict[str, Callable[[], Tensor]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def add(self, key: str, shape: Iterable[int], reader: Callable[[], Tensor]) -> None:
        self.shapes[key], self.readers[key] = tuple(shape), reader

    def renamed(self, rename: Callable[[str], str | None]) -> Weights:
        """The same weights under other keys; those renamed to None are left out."""
        result = Weights(self.source, faults=self.faults)
        for key, shape in self.shapes.items():
            if (new := rename(key)) is not None:
                result.shapes[new] = shape
                if key in self.readers:
                    result.readers[new] = self.readers[key]
        return result

    def take(self, expected: Shapes, dtype: torch.dtype | None) -> dict[str, Tensor]:
        """Read every expected tensor, converted to `dtype` (None: as stored).

        Raises:
            CheckpointError: files could not be read, or keys or shapes are not those expected; names all of them.
        """
        faults = list(self.faults)
        if self.shapes or not faults:  # when nothing could be read, each missing key is no news
            faults += compare(self.shapes, expected)
        if faults:
            raise CheckpointError(
                f"{self.source}: {'; '.join(faults)}; download the checkpoint again or use the config that came with it"
            )
        return {key: self.readers[key]().to(dtype) if dtype else self.readers[key]() for key in expected}


def compare(found: Mapping[str, tuple[int, ...]], expected: Shapes) -> list[str]:
    """Faults (missing, unexpected and wrongly shaped tensors) between what a file holds and what its config wants."""
    faults = []
    if missing := expected.keys() - found.keys():
        faults.append(_count(missing, "missing tensor"))
    if extra := found.keys() - expected.keys():
        faults.append(_count(extra, "unexpected tensor"))
    if wrong := [
        f"{key} is {list(found[key])}, must be {list(expected[key])}"
        for key in expected.keys() & found.keys()
        if found[key] != expected[key]
    ]:
        faults.append(_count(wrong, "wrong shape"))
    return faults


def read_text(path: Path) -> str:
    """Raises CheckpointError when the file cannot be read as text."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: file is missing; give the folder of a complete checkpoint") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({_one_line(error)}); copy the file again") from error


@contextmanager
def open_folder(folder: Path) -> Iterator[Weights]:
    """The weights of a Hugging Face folder: `model.safetensors`, or the shards that its index names."""
    index = folder / INDEX_NAME
    if index.exists():
        files = _indexed_files(index)
    elif (folder / SINGLE_NAME).exists():
        files = {folder / SINGLE_NAME: None}
    else:
        raise CheckpointError(
            f"{folder}: neither {SINGLE_NAME} nor {INDEX_NAME} is there; give the folder of a complete checkpoint"
        )
    with open_safetensors(files, str(folder)) as weights:
        yield weights


@contextmanager
def open_safetensors(files: Mapping[Path, set[str] | None], source: str) -> Iterator[Weights]:
    """Weights of safetensors files, each with the keys an index expects there (None: whatever it holds)."""
    weights = Weights(source)
    with ExitStack() as stack:
        for path, listed in files.items():
            try:
                reader = stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                if _is_pointer(path):
                    weights.faults.append(f"{path.name} is a Git LFS pointer, not the file: run git lfs pull there")
                    continue
                weights.faults.append(f"{path.name} is missing, truncated or not safetensors ({_one_line(error)})")
                continue
            keys = set(reader.keys())
            if listed is not None and keys != listed:
                weights.faults.append(f"{path.name} does not hold what {INDEX_NAME} says: {_listing(keys ^ listed)}")
            for key in keys:
                weights.add(key, reader.get_slice(key).get_shape(), partial(reader.get_tensor, key))
        yield weights


def open_torch_file(path: Path) -> Weights:
    """Weights of a torch file (`.pt`). Only tensors are unpickled; a file with code in it is refused, never run."""
    weights = Weights(str(path))
    try:
        with path.open("rb") as file:
            _check_start(path, file.read(_START_BYTES))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: file is missing; give the folder of a complete checkpoint") from error
    except _TORCH_LOAD_ERRORS as error:
        refused = "weights only" in str(error).lower() or "unsupported" in str(error).lower()
        reason = "it holds more than tensors and is not loaded" if refused else "truncated or not a torch file"
        found = _one_line(error).rpartition("WeightsUnpickler error: ")[2]  # before it PyTorch says how to run the code
        raise CheckpointError(f"{path}: {reason} ({found[:120]}); download the released file again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a state dict; use the released file")
    if strangers := [str(key) for key, value in content.items() if not isinstance(value, Tensor)]:
        weights.faults.append(_count(strangers, "entry that is not a tensor", "entries that are not tensors"))
    for key, value in content.items():
        if isinstance(value, Tensor):
            weights.add(str(key), value.shape, value.detach)
    return weights


def _is_pointer(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(_START_BYTES).startswith(_POINTER)
    except OSError:
        return False


def _check_start(path: Path, start: bytes) -> None:
    """Raises CheckpointError for what a download left in place of a torch file. An empty file is torch's to refuse."""
    if start.startswith(_POINTER):
        raise CheckpointError(f"{path}: a Git LFS pointer, not the file it stands for; run git lfs pull there")
    if start and not start.startswith((b"PK", b"\x80")):  # a zip archive, or the pickle of older files
        raise CheckpointError(f"{path}: not a torch file, it begins with {start!r}; download the released file again")


def module_shapes(module: type[nn.Module], config: object) -> Shapes:
    """Key -> shape of the state dict of a module of this size, without allocating it."""
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in module(config).state_dict().items()}


def dtype_name(tensors: Mapping[str, Tensor]) -> str:
    """Name of the dtype the weights are stored in."""
    return str(next(iter(tensors.values())).dtype).removeprefix("torch.")


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors makes it private to this user; a server may be another


def write_json(path: Path, fields: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _indexed_files(index: Path) -> dict[Path, set[str] | None]:
    try:
        weight_map = json.loads(read_text(index))["weight_map"]
        files: dict[Path, set[str]] = {}
        for key, name in weight_map.items():
            if Path(name).name != name:
                raise ValueError(f"{key} is placed in {name!r}, which is not a file name")
            files.setdefault(index.parent / name, set()).add(key)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: not a weight index ({_one_line(error)}); download the file again") from error
    return dict(files)


def _listing(names: Iterable[str]) -> str:
    items = sorted(names)
    shown = ", ".join(items[:LISTED])
    return shown if len(items) <= LISTED else f"{shown}, ... ({len(items)} in all)"


def _count(names: Iterable[str], singular: str, plural: str | None = None) -> str:
    items = list(names)
    return f"{len(items)} {singular if len(items) == 1 else plural or singular + 's'}: {_listing(items)}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
