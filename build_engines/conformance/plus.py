"""Golden data of the Plus variant from the waveform on: features, embeddings, and tokens that other rounding leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file

from build_engines.conformance.language_model import DEVICE, ENGINES, SLOTS, run_cases
from build_engines.conformance.language_model_cases import Case, read_cases
from build_engines.conformance.result import Result, compare_tokens, compare_values
from build_engines.onnxruntime.sensevoice import export_sensevoice
from vita_audio.checkpoint.cmvn import read_cmvn
from vita_audio.checkpoint.language_model import load_language_model
from vita_audio.checkpoint.sensevoice import SenseVoiceParts, load_sensevoice
from vita_audio.engines.interface import Floats, SpeechEncoderEngine
from vita_audio.engines.onnxruntime.sensevoice import OnnxSenseVoice
from vita_audio.engines.torch_cuda.sensevoice import TorchCudaSenseVoice
from vita_audio.models.sensevoice import SenseVoice
from vita_audio.sensevoice_features import log_mel, normalized, stacked_frames

# Limits between two correct float32 implementations (README of the golden data).
LOG_MEL, FEATURES, RELATIVE = 2e-3, 1e-3, 1e-4
#: Checkpoint whose tower and projector `encoder_io.safetensors` is of.
ENCODED_BY = "plus_vanilla"


def check_plus(folder: Path) -> Iterator[Result]:
    """`frontend_io.safetensors` beside `sensevoice/` and a folder for each checkpoint."""
    shift, scale = read_cmvn(folder / "sensevoice" / "am.mvn")
    golden = {key: value.numpy() for key, value in load_file(folder / "frontend_io.safetensors").items()}
    encoded = load_file(folder / "encoder_io.safetensors")
    features: dict[str, Floats] = {}
    for clip in sorted(key.removesuffix(".wave") for key in golden if key.endswith(".wave")):
        bands = log_mel(golden[f"{clip}.wave"], dither=0)
        yield compare_values(f"plus {clip} s, log-mel", "numpy", bands, golden[f"{clip}.fbank"], LOG_MEL)
        features[clip] = normalized(stacked_frames(bands), shift, scale)
        wanted = golden[f"{clip}.features"]
        yield compare_values(f"plus {clip} s, features", "numpy", features[clip], wanted, FEATURES)
    for checkpoint in sorted(path.parent for path in folder.glob("*/greedy_tokens.json")):
        with TemporaryDirectory() as scratch:
            encoders = _encoders(folder, checkpoint, Path(scratch))
            if checkpoint.name == ENCODED_BY:
                for clip in features:
                    stored, wanted = golden[f"{clip}.features"], encoded[f"{clip}.embeddings"].numpy()
                    for name, encoder in encoders.items():
                        made, label = encoder.embeddings(stored), f"plus {clip} s, embeddings"
                        yield compare_values(label, name, made, wanted, RELATIVE, relative=True)
            yield from _tokens_of_speech(checkpoint, features, encoders)


def _tokens_of_speech(
    checkpoint: Path, features: Mapping[str, Floats], encoders: Mapping[str, SpeechEncoderEngine]
) -> Iterator[Result]:
    """Robust cases together, by the language model of each encoder's family."""
    config, tensors = load_language_model(checkpoint, torch.float32)
    cases = [case for case in read_cases(checkpoint, config.mctp_modules) if case.clips and case.robust]
    context = max(len(case.prompt) + len(case.tokens) for case in cases) + 1
    for name, encoder in encoders.items():
        made = {clip: encoder.embeddings(rows) for clip, rows in features.items()}
        heard = [case.with_speech([made[clip] for clip in case.clips]) for case in cases]
        with TemporaryDirectory() as scratch:
            engine = ENGINES[name](config, tensors, SLOTS, context, Path(scratch), True)
            yield from _compared(name, heard, run_cases(engine, heard))


def _compared(name: str, cases: list[Case], made: list[list[int]]) -> Iterator[Result]:
    for case, tokens in zip(cases, made, strict=True):
        yield compare_tokens(f"{case.label}, from the waveform", name, tokens, case.tokens)


def _encoders(folder: Path, checkpoint: Path, scratch: Path) -> dict[str, SpeechEncoderEngine]:
    for file in (*checkpoint.iterdir(), *(folder / "sensevoice").iterdir()):
        (scratch / file.name).symlink_to(file.resolve())
    parts = load_sensevoice(scratch)
    model = _Reference(parts)
    export_sensevoice(model.network, parts.feature_shift, parts.feature_scale, scratch)
    tables = {"feature_shift": model.feature_shift, "feature_scale": model.feature_scale}
    stored = parts.tensors | {key: torch.from_numpy(value) for key, value in tables.items()}
    return {
        "torch": model,
        "onnxruntime": OnnxSenseVoice(scratch),
        "torch_cuda": TorchCudaSenseVoice(parts.config, stored, DEVICE),
    }


class _Reference:
    """`SpeechEncoderEngine` over `models.sensevoice`."""

    def __init__(self, parts: SenseVoiceParts) -> None:
        self.feature_shift, self.feature_scale = parts.feature_shift, parts.feature_scale
        self.embedding_size = parts.config.embedding_size
        self.network = SenseVoice(parts.config).eval()
        self.network.load_state_dict(parts.tensors)

    @torch.inference_mode()
    def embeddings(self, features: Floats) -> Floats:
        return self.network(torch.from_numpy(features)[None], torch.tensor([len(features)]))[0].numpy()
