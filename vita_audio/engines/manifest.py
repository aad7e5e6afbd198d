"""The engines' manifest: what a folder of engines was built from and holds. Read by the server, so no PyTorch here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from dataclasses import field as dataclass_field
from importlib import metadata
from pathlib import Path
from typing import Any

from vita_audio.checkpoint.configs import SENSEVOICE, SPEECH_TOKENIZER
from vita_audio.checkpoint.file_records import FileRecord, checkpoint_sha256, file_sha256
from vita_audio.contract.errors import EngineError
from vita_audio.contract.limits import Limits
from vita_audio.engines.gpu_machine import GpuMachine, find_machine
from vita_audio.engines.gpu_record import TENSORRT_LLM, TORCH_CUDA, GpuRecord, standard_engines
from vita_audio.text.vocabulary import Vocabulary

MANIFEST = "manifest.json"
FORMAT = 1
#: Folder inside the engines where the builder keeps what it has done; not part of the engines.
WORK_FOLDER = ".build"
#: Packages whose version the engines of a target depend on, when they run.
RUNTIME_PACKAGES: dict[str, tuple[str, ...]] = {"cpu": ("onnxruntime",)}


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the engines hold.

    `sizes`: part (language_model, speech_tokenizer or sensevoice, flow, vocoder) -> fields of its config dataclass in
    `vita_audio.checkpoint.configs`. `engines`: stage -> engine family. `speech_input`: "speech_tokenizer", or
    "sensevoice" of a Plus checkpoint.
    `versions`: python and packages at build time. `files`: path -> record.
    `schedule`: fields of the decoder's `DecoderConfig`, which decide the shapes that TensorRT's profiles are made for;
    None where none was recorded, in engines that take any. `gpu`: what GPU engines were built for, None for other
    targets.
    """

    target: str
    checkpoint_name: str
    checkpoint_sha256: str
    versions: dict[str, str]
    sizes: dict[str, dict[str, Any]]
    vocabulary: Vocabulary
    limits: Limits
    files: dict[str, FileRecord]
    schedule: dict[str, Any] | None = None
    gpu: GpuRecord | None = None
    engines: dict[str, str] = dataclass_field(default_factory=dict)
    speech_input: str = SPEECH_TOKENIZER

    def __post_init__(self) -> None:
        if not self.engines:  # as in manifests of before: what the builder makes
            object.__setattr__(self, "engines", standard_engines(self.gpu, self.speech_input))

    def to_json(self) -> str:
        fields = {"format": FORMAT, **asdict(self)}
        for optional in ("schedule", "gpu"):
            if fields[optional] is None:
                del fields[optional]
        return json.dumps(fields, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Raises EngineError naming the field that is missing, unknown or of another format version."""
        try:
            fields = json.loads(text)
            found = fields.pop("format", None)
        except (ValueError, AttributeError, TypeError) as error:
            raise EngineError(f"it is not a JSON object ({error})") from error
        if found != FORMAT:
            raise EngineError(f"format: {found!r}, but this version reads {FORMAT}")
        try:
            fields["vocabulary"] = Vocabulary.from_dict(fields["vocabulary"])
            fields["limits"] = Limits.from_dict(fields["limits"])
            fields["files"] = {name: FileRecord(**record) for name, record in fields["files"].items()}
            if "gpu" in fields:
                fields["gpu"] = GpuRecord.from_dict(fields["gpu"])
            return cls(**fields)
        except (KeyError, TypeError, AttributeError) as error:
            raise EngineError(f"a field is missing or unknown ({type(error).__name__}: {error})") from error


def load_manifest(folder: Path, target: str = "cpu") -> Manifest:
    """Read `folder`/manifest.json; `target` is the one to build when it is not there.

    Raises:
        EngineError: it is missing or cannot be read; says how to build it.
    """
    path = folder / MANIFEST
    remedy = f"build the engines: python -m build_engines --checkpoint DIR --target {target} --out {folder}"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EngineError(f"{path}: cannot be read ({error.__class__.__name__}); {remedy}") from error
    try:
        return Manifest.from_json(text)
    except EngineError as error:
        raise EngineError(f"{path}: {error}; {remedy}") from error


def check_manifest(
    folder: Path,
    checkpoint: Path | None = None,
    target: str = "cpu",
    machine: GpuMachine | None = None,
    device: str = "cuda:0",
    schedule: Mapping[str, Any] | None = None,
) -> Manifest:
    """Check that the engines in a folder are complete and fit this installation, and a checkpoint when one is named.

    Args:
        machine: what GPU engines must fit; None looks at this machine.
        device: where torch_cuda engines shall run; on "cpu" no GPU is asked for.
        schedule: of the decoder that will run them (`schedule_fields`); None does not check it.

    Returns:
        The manifest.

    Raises:
        EngineError: naming the first field of the manifest that does not fit, its value and what was found.
    """
    manifest = load_manifest(folder, target)
    path = folder / MANIFEST

    def refuse(field: str, value: object, found: object) -> EngineError:
        return EngineError(
            f"{path}: {field} is {value!r} but {found}; build the engines again (python -m build_engines)"
        )

    if manifest.target != target:
        raise refuse("target", manifest.target, f"{target!r} is asked for")
    for package in RUNTIME_PACKAGES.get(target, ()):
        installed, built = package_version(package), manifest.versions.get(package)
        if installed != built:
            raise refuse(f"versions.{package}", built, f"{installed} is installed")
    if target == "gpu":
        machine = None if device == "cpu" else machine or find_machine()
        for field, value, found in _gpu_incompatibilities(manifest, machine):
            raise refuse(field, value, found)
        if machine is not None and manifest.gpu is not None and (reason := manifest.gpu.unfit_machine(machine)):
            raise EngineError(f"{path}: {reason}")
    for field, value, found in _schedule_incompatibilities(manifest, schedule or {}):
        raise refuse(field, value, found)
    sizes, limits, vocabulary = manifest.sizes, manifest.limits, manifest.vocabulary
    language_model = sizes.get("language_model", {})
    for field, value, expected in (
        ("limits.mctp_modules", limits.mctp_modules, language_model.get("num_nextn_predict_layers")),
        ("vocabulary.audio_codes", vocabulary.audio_codes, sizes.get("flow", {}).get("vocab_size")),
        (
            "vocabulary.audio_codes",
            vocabulary.audio_codes,
            sizes.get(SPEECH_TOKENIZER, {}).get("quantize_vocab_size"),
        ),
    ):
        if value != expected and not (expected is None and SENSEVOICE in sizes):
            raise refuse(field, value, f"the engines have {expected}")
    if manifest.speech_input not in sizes:
        raise refuse("speech_input", manifest.speech_input, f"the engines have {', '.join(sorted(sizes))}")
    if vocabulary.tokens > language_model.get("vocab_size", 0):
        raise refuse("vocabulary.tokens", vocabulary.tokens, f"the model has {language_model.get('vocab_size')} rows")
    for name, record in manifest.files.items():
        file = folder / name
        if not file.is_file():
            raise refuse(f"files.{name}", "present", "the file is missing")
        if file.stat().st_size != record.bytes:
            raise refuse(f"files.{name}.bytes", record.bytes, f"the file has {file.stat().st_size}")
        if file_sha256(file) != record.sha256:
            raise refuse(f"files.{name}.sha256", record.sha256[:12], "the file's content is another")
    if checkpoint is not None:
        found = checkpoint_sha256(checkpoint)
        if found != manifest.checkpoint_sha256:
            built_from = f"{manifest.checkpoint_name} {manifest.checkpoint_sha256[:12]}"
            raise refuse("checkpoint_sha256", built_from, f"{checkpoint} has {found[:12]}")
    return manifest


def _gpu_incompatibilities(manifest: Manifest, machine: GpuMachine | None) -> Iterator[tuple[str, object, str]]:
    """(field, value, what is there instead) that keeps GPU engines from running here, or contradicts itself.

    `machine` is None where they shall run on a CPU.
    """
    gpu = manifest.gpu
    if gpu is None:
        yield "gpu", None, "a GPU target records what it was built for"
        return
    if machine is not None:
        for field, value, found in gpu.incompatibilities(machine):
            yield f"gpu.{field}", value, found
    elif gpu.engine != TORCH_CUDA:
        yield "gpu.engine", gpu.engine, f"only {TORCH_CUDA} engines run on --device cpu"
    rows = manifest.sizes.get("language_model", {}).get("vocab_size", 0)
    banned = tuple(manifest.vocabulary.banned_ids(rows))
    if gpu.banned_ids != banned:
        yield "gpu.banned_ids", f"{len(gpu.banned_ids)} ids", f"its vocabulary bans {len(banned)} others"
    if not 0 <= gpu.head_first_id < rows:
        yield "gpu.head_first_id", gpu.head_first_id, f"the model has {rows} rows"
    if not 1 <= gpu.candidates <= rows - gpu.head_first_id:
        yield "gpu.candidates", gpu.candidates, f"the MCTP head has {rows - gpu.head_first_id} rows"
    if gpu.bytes_beside_slots < 0:
        yield "gpu.bytes_beside_slots", gpu.bytes_beside_slots, "it is bytes of a GPU's memory"


def _schedule_incompatibilities(manifest: Manifest, running: Mapping[str, Any]) -> Iterator[tuple[str, object, str]]:
    """As above, of the decoder's schedule; `running` may be empty."""
    recorded = manifest.schedule
    if running and recorded is None and manifest.gpu is not None and manifest.gpu.engine == TENSORRT_LLM:
        yield "schedule", None, "TensorRT's audio engines are built for the shapes of one schedule"
    if not running or recorded is None:
        return
    for field in sorted(recorded.keys() | running.keys()):
        built, runs = recorded.get(field), running.get(field)
        if built != runs:
            yield f"schedule.{field}", built, f"this version decodes with {runs!r}"


def schedule_fields(config: Any) -> dict[str, Any]:
    """A `DecoderConfig` as plain data, as it is read back."""
    fields: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return fields


def package_version(package: str) -> str:
    """Installed version of a package, or "none"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"
