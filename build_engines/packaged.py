"""Engines as their difference from a checkpoint: small enough for a repository, restored without PyTorch.

python -m build_engines.packaged pack --checkpoint DIR --engines DIR --out PACKAGED
python -m build_engines.packaged unpack --checkpoint DIR --packaged PACKAGED --out ENGINES
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import bsdiff4
import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from safetensors import SafetensorError
from safetensors.numpy import load_file

from build_engines.command import errors_reported
from vita_audio.checkpoint.file_records import checkpoint_sha256, file_sha256
from vita_audio.contract.errors import CheckpointError, EngineError
from vita_audio.engines.manifest import MANIFEST, Manifest, check_manifest, load_manifest

INDEX = "index.json"
_SUFFIX = ".bsdiff"
#: Start of an engine file's path -> the part of the checkpoint whose weights it holds.
_PARTS = {
    "language_model/": "language_model",
    "tokenizer.json": "language_model",
    "speech_tokenizer": "speech_tokenizer",
    "flow": "audio_decoder",
    "vocoder": "audio_decoder",
}
_DTYPES = {"float16": np.float16, "float32": np.float32}

app = typer.Typer(add_completion=False, help=__doc__, no_args_is_help=True)
_out = Console(highlight=False)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor of a torch file lies, so that it can be read as plain bytes."""

    file: str
    key: str
    entry: str
    dtype: str
    shape: tuple[int, ...]


def pack(checkpoint: Path, engines: Path, folder: Path, on_file: Callable[[str, int, int], None]) -> None:
    """Write the difference of every engine file from the checkpoint's weights; the folder is complete or not touched.

    Args:
        on_file: called with each file's name, its size and that of its difference.

    Raises:
        CheckpointError, EngineError: the engines are incomplete or of another checkpoint, or a file is of no part.
    """
    manifest = check_manifest(engines, checkpoint, load_manifest(engines).target)
    stored = [tensor for file in sorted(checkpoint.rglob("*.pt")) for tensor in _stored_tensors(checkpoint, file)]
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for source, names in _sources(manifest).items():
        reference = _reference(checkpoint, source, stored)
        for name in names:
            content = (engines / name).read_bytes()
            difference = _known_difference(folder / (name + _SUFFIX), reference, content)
            if difference is None:
                difference = bsdiff4.diff(reference, content)
            path = temporary / (name + _SUFFIX)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(difference)
            on_file(name, len(content), len(difference))
    (temporary / INDEX).write_text(json.dumps([asdict(tensor) for tensor in stored], indent=1) + "\n", encoding="utf-8")
    (temporary / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.replace(folder)


def unpack(checkpoint: Path, folder: Path, engines: Path) -> bool:
    """Restore packed engines; they are whole, and their hashes those of the manifest, or not there.

    Several processes may call it for one folder: the first restores, the others wait for it and find them there.

    Returns:
        False when `engines` holds them already.

    Raises:
        CheckpointError, EngineError: the checkpoint is another one, a file is missing or damaged, or `engines` cannot
            be written or holds something else.
    """
    manifest = load_manifest(folder)
    found = checkpoint_sha256(checkpoint)
    if found != manifest.checkpoint_sha256:
        raise EngineError(
            f"{folder / MANIFEST}: checkpoint_sha256 is {manifest.checkpoint_sha256[:12]} but {checkpoint} has "
            f"{found[:12]}; restore the checkpoint's files, or build its engines (python -m build_engines)"
        )
    if _same(folder, engines) and _complete(engines, manifest):
        return False  # before the lock, since a folder that is complete may be read-only
    temporary = engines.with_name(f".{engines.name}.tmp")
    try:
        with _unpack_lock(engines):
            if _same(folder, engines) and _complete(engines, manifest):
                return False  # another process restored them in the meantime
            if engines.exists() and any(engines.iterdir()) and not (engines / MANIFEST).exists():
                raise EngineError(f"{engines}: holds something that is not engines; choose another folder")
            shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
            try:
                _restore(checkpoint, folder, manifest, temporary)
                shutil.rmtree(engines, ignore_errors=True)
                os.replace(temporary, engines)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise EngineError(
            f"{engines}: cannot be written ({error.strerror or error}); free space, or choose a writable folder"
        ) from error
    return True


@contextmanager
def _unpack_lock(engines: Path) -> Iterator[None]:
    """One process at a time restores a folder; the next one waits."""
    engines.parent.mkdir(parents=True, exist_ok=True)
    with engines.with_name(f".{engines.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _restore(checkpoint: Path, folder: Path, manifest: Manifest, out: Path) -> None:
    """Write every engine file and the manifest to a new folder.

    Raises:
        CheckpointError, EngineError: a file of the checkpoint or a difference is missing or damaged.
        OSError: `out` cannot be written.
    """
    stored = _read_index(folder / INDEX)
    for source, names in _sources(manifest).items():
        reference = _reference(checkpoint, source, stored)
        for name in names:
            packed = folder / (name + _SUFFIX)
            try:
                content = bsdiff4.patch(reference, packed.read_bytes())
            except (OSError, ValueError) as error:
                raise EngineError(f"{packed}: cannot be applied ({error}); get the file again") from error
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            if file_sha256(path) != manifest.files[name].sha256:
                raise EngineError(f"{packed}: gives another file than the manifest's; get it again")
    shutil.copyfile(folder / MANIFEST, out / MANIFEST)


def _same(folder: Path, engines: Path) -> bool:
    manifest = engines / MANIFEST
    return manifest.is_file() and manifest.read_bytes() == (folder / MANIFEST).read_bytes()


def _complete(engines: Path, manifest: Manifest) -> bool:
    return all(
        (engines / name).is_file() and file_sha256(engines / name) == record.sha256
        for name, record in manifest.files.items()
    )


@dataclass(frozen=True, slots=True)
class _Source:
    """What engine files are a difference from: the weights of a part of the checkpoint, or its text."""

    part: str
    text: bool


def _sources(manifest: Manifest) -> dict[_Source, list[str]]:
    """Source -> names of the engine files made from it."""
    sources: dict[_Source, list[str]] = {}
    for name in manifest.files:
        part = next((part for start, part in _PARTS.items() if name.startswith(start)), None)
        if part is None or Path(name).is_absolute() or ".." in Path(name).parts:
            raise EngineError(f"{name}: belongs to no part of a checkpoint")
        sources.setdefault(_Source(part, name.endswith(".json")), []).append(name)
    return sources


def _known_difference(path: Path, reference: bytes, content: bytes) -> bytes | None:
    """The difference that was packed before, when it still gives this content: finding one takes minutes."""
    try:
        difference = path.read_bytes()
        return difference if bsdiff4.patch(reference, difference) == content else None
    except (OSError, ValueError):
        return None


def _reference(checkpoint: Path, source: _Source, stored: list[StoredTensor]) -> bytes:
    """All that an engine may hold of a part: its weights as float32, as they are and transposed, or its text."""
    folder = checkpoint / source.part
    if source.text:
        return b"".join(file.read_bytes() for file in sorted(folder.glob("*.json")))
    pieces: list[bytes] = []
    for file in sorted(folder.glob("*.safetensors")):
        try:
            tensors = load_file(file)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file}: cannot be read ({error}); restore the checkpoint's files") from error
        pieces += _layouts(tensors)
    for name in sorted({tensor.file for tensor in stored if Path(tensor.file).parts[0] == source.part}):
        pieces += _layouts(_read_torch_file(checkpoint / name, [t for t in stored if t.file == name]))
    return b"".join(pieces)


def _layouts(tensors: dict[str, NDArray]) -> Iterator[bytes]:
    """Bytes of each tensor in float32, and with its first axis last; weight norm folded (docs/audio.md 3)."""
    for key in sorted(tensors):
        value = tensors[key].astype(np.float32)
        if key.endswith("_v") and key.removesuffix("v") + "g" in tensors:
            norm = np.linalg.norm(value.reshape(len(value), -1), axis=1).reshape(-1, *[1] * (value.ndim - 1))
            value = value * (tensors[key.removesuffix("v") + "g"].astype(np.float32) / norm)
        yield value.tobytes()
        if value.ndim > 1:
            yield np.moveaxis(value, 0, -1).tobytes()


def _stored_tensors(checkpoint: Path, file: Path) -> Iterator[StoredTensor]:
    """Where the tensors of a torch file lie in it."""
    import torch  # for packing alone

    with zipfile.ZipFile(file) as archive:
        entries = [name for name in archive.namelist() if "/data/" in name]
        tensors = torch.load(file, map_location="cpu", weights_only=True)
        by_number = {int(entry.rsplit("/", 1)[1]): entry for entry in entries}
        for number, (key, value) in enumerate(tensors.items()):
            content = value.contiguous().numpy()
            if archive.read(by_number.get(number, "")) != content.tobytes():
                raise CheckpointError(f"{file}: {key} is not the file's entry {number}; save each tensor by itself")
            name = file.relative_to(checkpoint).as_posix()
            yield StoredTensor(name, key, by_number[number], str(content.dtype), tuple(content.shape))


def _read_torch_file(file: Path, stored: list[StoredTensor]) -> dict[str, NDArray]:
    """Tensors of a torch file, which is a zip archive of plain arrays; nothing in it is executed."""
    try:
        with zipfile.ZipFile(file) as archive:
            return {
                tensor.key: np.frombuffer(archive.read(tensor.entry), _DTYPES[tensor.dtype]).reshape(tensor.shape)
                for tensor in stored
            }
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{file}: cannot be read ({error}); restore the checkpoint's files") from error


def _read_index(path: Path) -> list[StoredTensor]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return [StoredTensor(**{**entry, "shape": tuple(entry["shape"])}) for entry in fields]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise EngineError(f"{path}: cannot be read ({error}); get the packaged engines again") from error


Checkpoint = Annotated[Path, typer.Option(help="The checkpoint that the engines were built from.")]


@app.command("pack")
def pack_command(
    checkpoint: Checkpoint,
    engines: Annotated[Path, typer.Option(help="Its engines, from python -m build_engines.")],
    out: Annotated[Path, typer.Option(help="Folder for their difference.")],
) -> None:
    """Write engines as their difference from the checkpoint (minutes; about 20 bytes of memory per byte of weights)."""
    with errors_reported():
        pack(
            checkpoint,
            engines,
            out,
            lambda name, size, difference: _out.print(f"{name}: {size / 1e6:.1f} MB -> {difference / 1e3:.0f} kB"),
        )


@app.command("unpack")
def unpack_command(
    checkpoint: Checkpoint,
    packaged: Annotated[Path, typer.Option(help="What pack wrote.")],
    out: Annotated[Path, typer.Option(help="Folder for the engines.")],
) -> None:
    """Restore engines from a checkpoint and their difference (seconds, no PyTorch)."""
    with errors_reported():
        made = unpack(checkpoint, packaged, out)
        _out.print(f"{out}: engines of {checkpoint} " + ("restored" if made else "unchanged"), markup=False)


if __name__ == "__main__":
    app()
