"""What the audio engines on TensorRT were built for: shapes and profiles. Written by the builder.

No TensorRT here: the builder, the runtime and their tests share it (`tensorrt_audio.json` beside the engines).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vita_audio.contract.errors import EngineError

PLAN_FILE = "tensorrt_audio.json"
FORMAT = 2
FLOW_CONDITION, FLOW_VELOCITY = "flow_condition", "flow_velocity"
VOCODER_F0, VOCODER = "vocoder_f0", "vocoder"
SPEECH_TOKENIZER, SENSEVOICE = "speech_tokenizer", "sensevoice"
BATCH = "batch"

#: Length of each named dimension: batch, tokens, frames, samples, rows.
Geometry = dict[str, int]
#: (least, most likely, most) of each named dimension.
Profile = dict[str, tuple[int, int, int]]


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """One engine.

    Attributes:
        precision: "float32", "tf32" (products may use TF32) or "half products" (float16, the rest float32).
        inputs: name -> dimensions, names for free ones.
        profiles: the most special ones first, the one that takes everything last.
        metadata: what the exporter wrote into the graph.
    """

    precision: str
    inputs: dict[str, tuple[int | str, ...]]
    profiles: tuple[Profile, ...]
    metadata: dict[str, str]

    def shapes(self, geometry: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """Input shapes of a geometry, `batch` included."""
        return {
            name: tuple(geometry[size] if isinstance(size, str) else size for size in dims)
            for name, dims in self.inputs.items()
        }

    def profile_of(self, geometry: Mapping[str, int]) -> int:
        """Index of the most special profile that takes a geometry.

        Raises:
            EngineError: no profile does; names the dimension and its range.
        """
        for index, profile in enumerate(self.profiles):
            if all(low <= geometry[name] <= high for name, (low, _, high) in profile.items()):
                return index
        for name, (low, _, high) in self.profiles[-1].items():
            if not low <= geometry[name] <= high:
                raise EngineError(
                    f"{name} is {geometry[name]}, the engine was built for {low} to {high}; "
                    "build the audio engines for this decoder schedule"
                )
        raise EngineError(f"no profile takes {dict(geometry)}; build the audio engines for this decoder schedule")


@dataclass(frozen=True, slots=True)
class AudioPlan:
    """All audio engines of a folder.

    Attributes:
        tensorrt: version that built them; engines run with that one only.
        compute_capability: of the GPU they were built for, as "9.0".
        max_batch: windows of one engine call.
    """

    tensorrt: str
    compute_capability: str
    max_batch: int
    engines: dict[str, EnginePlan]

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> AudioPlan:
        """Raises EngineError naming what is wrong."""
        try:
            fields: dict[str, Any] = json.loads(text)
            found = fields.pop("format", None)
            if found != FORMAT:
                raise EngineError(f"format is {found!r}, this version reads {FORMAT}")
            fields["engines"] = {name: _engine_plan(record) for name, record in fields["engines"].items()}
            return cls(**fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise EngineError(f"not a plan of audio engines ({type(error).__name__}: {error})") from error


def load_plan(folder: Path) -> AudioPlan:
    """Read `folder`/tensorrt_audio.json. Raises EngineError when it is missing or wrong."""
    path = folder / PLAN_FILE
    try:
        return AudioPlan.from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EngineError(f"{path}: cannot be read ({type(error).__name__}); build the audio engines") from error
    except EngineError as error:
        raise EngineError(f"{path}: {error}; build the audio engines again") from error


def batch_buckets(max_batch: int) -> list[int]:
    """Batch sizes that have CUDA graphs: powers of two, to the first that holds `max_batch`."""
    buckets = [1]
    while buckets[-1] < max_batch:
        buckets.append(buckets[-1] * 2)
    return buckets


def _engine_plan(record: dict[str, Any]) -> EnginePlan:
    return EnginePlan(
        precision=record["precision"],
        inputs={name: tuple(dims) for name, dims in record["inputs"].items()},
        profiles=tuple({name: tuple(r) for name, r in profile.items()} for profile in record["profiles"]),
        metadata=record["metadata"],
    )
