"""Audio ONNX graphs -> TensorRT engines with the profiles of the decoder's schedule, and their plan.

    python -m build_engines.tensorrt_audio.build --graphs DIR --out DIR

A production build runs in the serving container, on the serving GPU, with its `tensorrt`: **not run on a GPU
yet**. The same networks, profiles and precisions are parsed and compiled ahead of time on a CPU by `tensorrt-rtx-cu13`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import onnx
import typer
from rich.console import Console

from build_engines.command import errors_reported
from build_engines.onnxruntime.flow import CONDITION_FILE, VELOCITY_FILE
from build_engines.onnxruntime.sensevoice import SENSEVOICE_FILE
from build_engines.onnxruntime.speech_tokenizer import SPEECH_TOKENIZER_FILE
from build_engines.onnxruntime.vocoder import F0_FILE, VOCODER_FILE
from build_engines.tensorrt_audio.graphs import standard_graph, with_frame_maps
from build_engines.tensorrt_audio.profiles import (
    Geometries,
    clip_profiles,
    decoder_geometries,
    profiles,
    speech_profiles,
)
from vita_audio.checkpoint.file_records import write_atomically
from vita_audio.checkpoint.sizes import SpeechInput
from vita_audio.contract.errors import EngineError
from vita_audio.decoding.schedule import DecoderConfig
from vita_audio.engines.tensorrt_audio.plan import (
    BATCH,
    FLOW_CONDITION,
    FLOW_VELOCITY,
    PLAN_FILE,
    SENSEVOICE,
    SPEECH_TOKENIZER,
    VOCODER,
    VOCODER_F0,
    AudioPlan,
    EnginePlan,
    Profile,
)
from vita_audio.engines.torch.weights import AUDIO_FOLDER
from vita_audio.sensevoice_features import QUERIES, most_slots

if TYPE_CHECKING:
    from build_engines.pipeline import Build, Facts, Needed

#: Of the pinned container 26.07; docs/tensorrt_llm.md 1.2.
TENSORRT_VERSION = "10.14"
#: What tensorrt-rtx compiles for on a CPU: one kind of its GPUs (Ada) is enough to check. It knows no Hopper.
AHEAD_FOR = "SM89"
FLOAT32, TF32, HALF_PRODUCTS = "float32", "tf32", "half products"


@dataclass(frozen=True, slots=True)
class AudioEngine:
    """File and precision of one engine, and the free dimensions of its inputs in order."""

    file: str
    precision: str
    dims: dict[str, tuple[str, ...]]


#: The estimator is nearly all the work of a decode and runs well in float16. The vocoder's exponentials and sines and
#: the f0 that is summed to a phase are not for float16 (docs/audio.md 2.8).
DECODER_ENGINES = {
    FLOW_CONDITION: AudioEngine(CONDITION_FILE, TF32, {"tokens": (BATCH, "tokens"), "frame_token": (BATCH, "frames")}),
    FLOW_VELOCITY: AudioEngine(
        VELOCITY_FILE, HALF_PRODUCTS, dict.fromkeys(("x", "mu", "cond"), (BATCH, "frames")) | {"t": ()}
    ),
    VOCODER_F0: AudioEngine(F0_FILE, FLOAT32, {"mel": (BATCH, "frames")}),
    VOCODER: AudioEngine(VOCODER_FILE, TF32, {"mel": (BATCH, "frames"), "source": (BATCH, "samples")}),
}
#: What takes speech in, of a base checkpoint and of a Plus one. The tokenizer picks the nearest of 16 384 codes, and
#: must pick the reference's (docs/audio.md 3); embeddings are as the golden data has them (docs/plus.md).
SPEECH_ENGINES = {
    SPEECH_TOKENIZER: AudioEngine(
        SPEECH_TOKENIZER_FILE, FLOAT32, {"features": (BATCH, "frames"), "valid_frames": (BATCH,)}
    ),
    SENSEVOICE: AudioEngine(SENSEVOICE_FILE, FLOAT32, {"features": (BATCH, "rows"), "lengths": (BATCH,)}),
}


def run(build: Build, folder: Path, needed: Needed) -> Facts:
    """A stage of a build."""
    out = folder / AUDIO_FOLDER
    build_audio_engines(build.graphs, out, DecoderConfig(), build.gpu.audio_batch, build.speech_input)
    return {}


def plan_engines(
    graphs: Path, config: DecoderConfig, max_batch: int, speech_input: str = SPEECH_TOKENIZER
) -> dict[str, tuple[EnginePlan, onnx.ModelProto]]:
    """Plan and graph of every audio engine, from the exported graphs; no TensorRT needed.

    Args:
        speech_input: SPEECH_TOKENIZER, or SENSEVOICE of a Plus checkpoint.

    Raises:
        EngineError: a graph is missing or not ours, or max_batch is below 1.
    """
    if max_batch < 1:
        raise EngineError(f"--max-batch: {max_batch} is not valid: at least 1")
    engines = DECODER_ENGINES | {speech_input: SPEECH_ENGINES[speech_input]}
    models = {
        name: standard_graph(graphs / engine.file, engine.precision == HALF_PRODUCTS)
        for name, engine in engines.items()
    }
    models[FLOW_CONDITION] = with_frame_maps(models[FLOW_CONDITION])
    metadata = {name: {entry.key: entry.value for entry in model.metadata_props} for name, model in models.items()}
    flow = metadata[FLOW_CONDITION]
    asked = decoder_geometries(config, int(flow["block_tokens"]))
    decoder: dict[str, Geometries] = {
        FLOW_CONDITION: asked.condition,
        FLOW_VELOCITY: asked.velocity,
        VOCODER_F0: asked.f0,
        VOCODER: asked.vocoder,
    }
    planned = {}
    for name, model in models.items():
        geometries = decoder.get(name)
        plan = EnginePlan(
            precision=engines[name].precision,
            inputs=dict(_inputs(model, engines[name].dims)),
            profiles=profiles(geometries, max_batch) if geometries else _speech_profiles(name, metadata[name]),
            metadata=metadata[name],
        )
        planned[name] = plan, model
    return planned


def _speech_profiles(name: str, metadata: dict[str, str]) -> tuple[Profile, ...]:
    if name == SPEECH_TOKENIZER:
        return speech_profiles(int(metadata["max_frames"]))
    return clip_profiles(most_slots() - QUERIES)


def build_engine(
    trt: ModuleType, name: str, plan: EnginePlan, model: onnx.ModelProto, ahead_for: str | None = None
) -> bytes:
    """Compile one engine with `tensorrt`, or ahead of time on a CPU with `tensorrt_rtx` for the GPUs `ahead_for`.

    Raises:
        EngineError: TensorRT does not take the graph or a profile; its own words are in the message.
    """
    logger = _Logger(trt)
    builder = trt.Builder(logger.logger)
    flags = trt.NetworkDefinitionCreationFlag
    network = builder.create_network(1 << int(flags.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger.logger)
    if not parser.parse(model.SerializeToString()):
        errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise EngineError(f"{name}: TensorRT does not take the graph: {errors}")
    config = builder.create_builder_config()
    if plan.precision == FLOAT32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if ahead_for is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.__members__[ahead_for], 0)
    for index, ranges in enumerate(plan.profiles):
        profile = builder.create_optimization_profile()
        least, likely, most = (plan.shapes({dim: r[end] for dim, r in ranges.items()}) for end in range(3))
        for tensor in plan.inputs:
            profile.set_shape(tensor, least[tensor], likely[tensor], most[tensor])
        if config.add_optimization_profile(profile) != index:
            raise EngineError(f"{name}: TensorRT refuses profile {index}: {logger.last}")
    built = builder.build_serialized_network(network, config)
    if built is None:
        raise EngineError(f"{name}: TensorRT cannot build the engine: {logger.last}")
    return bytes(built)


def build_audio_engines(
    graphs: Path,
    out: Path,
    config: DecoderConfig,
    max_batch: int,
    speech_input: str = SPEECH_TOKENIZER,
    on_built: Callable[[str, int], None] = lambda name, size: None,
) -> AudioPlan:
    """Build every audio engine on this machine's GPU into `out`, and the plan last: without it nothing loads.

    Raises:
        EngineError: TensorRT is missing or of another version, or an engine cannot be built.
    """
    try:
        import tensorrt
        import torch
    except ImportError as error:
        raise EngineError(f"{error.name} is not installed: build in the serving container") from error
    if not tensorrt.__version__.startswith(TENSORRT_VERSION):
        raise EngineError(f"tensorrt {tensorrt.__version__} is installed, {TENSORRT_VERSION} is served: same container")
    out.mkdir(parents=True, exist_ok=True)
    (out / PLAN_FILE).unlink(missing_ok=True)
    planned = plan_engines(graphs, config, max_batch, speech_input)
    for name, (plan, model) in planned.items():
        engine = build_engine(tensorrt, name, plan, model)
        (out / f"{name}.engine").write_bytes(engine)
        on_built(name, len(engine))
    made = AudioPlan(
        tensorrt=tensorrt.__version__,
        compute_capability=".".join(map(str, torch.cuda.get_device_capability())),
        max_batch=max_batch,
        engines={name: plan for name, (plan, _) in planned.items()},
    )
    write_atomically(out / PLAN_FILE, made.to_json())
    return made


def compile_on_cpu(
    graphs: Path, config: DecoderConfig, max_batch: int, speech_input: str = SPEECH_TOKENIZER
) -> dict[str, int]:
    """Parse and compile every audio engine ahead of time without a GPU; sizes in bytes. The engines are not kept.

    Raises:
        EngineError: tensorrt-rtx-cu13 is missing, or TensorRT refuses a graph or a profile.
    """
    try:
        importlib.import_module("tensorrt_rtx_libs")  # finds the shared libraries for the next import
        trt = importlib.import_module("tensorrt_rtx")
    except ImportError as error:
        raise EngineError(f"{error.name} is not installed: pip install tensorrt-rtx-cu13==1.7.1.116") from error
    planned = plan_engines(graphs, config, max_batch, speech_input)
    return {name: len(build_engine(trt, name, plan, model, AHEAD_FOR)) for name, (plan, model) in planned.items()}


def _inputs(model: onnx.ModelProto, dims: dict[str, tuple[str, ...]]) -> Iterable[tuple[str, tuple[int | str, ...]]]:
    """Dimensions of each input: the graph's fixed ones, and our names for its free ones."""
    for value in model.graph.input:
        names = iter(dims[value.name])
        shape = value.type.tensor_type.shape.dim
        yield value.name, tuple(size.dim_value if size.HasField("dim_value") else next(names) for size in shape)


class _Logger:
    """Keeps TensorRT's last error: its calls only return None."""

    def __init__(self, trt: ModuleType) -> None:
        self.last = "no reason given"
        keeper = self

        class Logger(trt.ILogger):  # type: ignore[name-defined,misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                    keeper.last = message

        self.logger = Logger()


def main(
    graphs: Annotated[Path, typer.Option(help="Folder with the exported ONNX graphs (an engines folder for cpu).")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the engines. Without it: compile on the CPU only.")
    ] = None,
    max_batch: Annotated[int, typer.Option(help="Windows of one engine call.")] = 8,
    speech_input: Annotated[SpeechInput, typer.Option(help="Of the checkpoint.")] = SpeechInput.speech_tokenizer,
) -> None:
    """Build the audio engines on this GPU; without --out check on a CPU that they compile."""
    console = Console(highlight=False, soft_wrap=True)

    def report(name: str, size: int) -> None:
        console.print(f"{name}: {size / 1e6:.1f} MB")

    with errors_reported():
        if out is not None:
            build_audio_engines(graphs, out, DecoderConfig(), max_batch, speech_input.value, report)
            return
        for name, size in compile_on_cpu(graphs, DecoderConfig(), max_batch, speech_input.value).items():
            report(name, size)


if __name__ == "__main__":
    typer.run(main)
