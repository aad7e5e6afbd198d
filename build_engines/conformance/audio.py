"""Golden audio cases: speech tokenizer, flow and vocoder by the reference and by every engine."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.numpy import load_file

from build_engines.conformance.result import Result, compare_tokens, compare_values
from build_engines.onnxruntime.flow import export_flow
from build_engines.onnxruntime.speech_tokenizer import export_speech_tokenizer
from build_engines.onnxruntime.vocoder import export_vocoder
from vita_audio.checkpoint.audio_decoder import load_flow, load_vocoder
from vita_audio.checkpoint.speech_tokenizer import load_speech_tokenizer
from vita_audio.contract.rates import mel_frames
from vita_audio.engines.audio_precision import FLOAT32
from vita_audio.engines.interface import Floats, FlowEngine, SpeechTokenizerEngine, VocoderEngine
from vita_audio.engines.onnxruntime.audio import OnnxFlow, OnnxVocoder
from vita_audio.engines.onnxruntime.speech_tokenizer import OnnxSpeechTokenizer
from vita_audio.engines.torch.audio import TorchFlow, TorchSpeechTokenizer, TorchVocoder
from vita_audio.engines.torch_cuda.audio import TorchCudaFlow, TorchCudaVocoder
from vita_audio.engines.torch_cuda.speech_tokenizer import TorchCudaSpeechTokenizer
from vita_audio.models.flow import Flow, offline_frame_map, time_grid
from vita_audio.models.speech_tokenizer import SpeechTokenizer
from vita_audio.models.vocoder import Vocoder
from vita_audio.speech_features import speech_pieces

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Limits between two correct float32 implementations (README of the golden data).
FEATURES, RELATIVE, F0_HZ, WAVE = 1e-4, 1e-3, 1e-2, 1e-3


def _cases(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """`<case>.<field>` arrays of a file, by case; a case name may hold dots (`3.21`)."""
    cases: dict[str, dict[str, np.ndarray]] = {}
    for key, value in load_file(path).items():
        case, field = key.rsplit(".", 1)
        cases.setdefault(case, {})[field] = value
    return cases


def check_speech_tokenizer(folder: Path) -> Iterator[Result]:
    """Waveform to features, features to ids."""
    config, tensors = load_speech_tokenizer(folder)
    model = SpeechTokenizer(config).eval()
    model.load_state_dict(tensors)
    with TemporaryDirectory() as scratch:
        export_speech_tokenizer(model, Path(scratch))
        engines: dict[str, SpeechTokenizerEngine] = {
            "torch": TorchSpeechTokenizer(config, tensors),
            "onnxruntime": OnnxSpeechTokenizer(Path(scratch), threads=1),
            "torch_cuda": TorchCudaSpeechTokenizer(config, tensors, DEVICE, FLOAT32),
        }
        for case, golden in _cases(folder / "speech_tokenizer_io.safetensors").items():
            label = f"speech tokenizer {case} s"
            pieces = list(speech_pieces(golden["wave"], config.num_mel_bins))
            for index, piece in enumerate(pieces):
                # The reference pads a short last piece to the length of the longest; ours stops at its last token.
                expected = golden[f"features{index}"][0][:, : piece.features.shape[1]]
                yield compare_values(f"{label}, features {index}", "numpy", piece.features, expected, FEATURES)
            for name, engine in engines.items():
                made = np.concatenate([engine.tokens(p.features, p.valid_frames) for p in pieces])
                yield compare_tokens(label, name, made.tolist(), golden["tokens"].ravel().tolist())


def check_flow(folder: Path) -> Iterator[Result]:
    """Token encoder, condition, one estimator call and the whole sampler."""
    config, tensors = load_flow(folder)
    model = Flow(config).eval()
    model.load_state_dict(tensors)
    with TemporaryDirectory() as scratch:
        export_flow(model, Path(scratch))
        engines: dict[str, FlowEngine] = {
            "torch": TorchFlow(config, tensors),
            "onnxruntime": OnnxFlow(Path(scratch), threads=1),
            "torch_cuda": TorchCudaFlow(config, tensors, DEVICE, FLOAT32),
        }
        for case, golden in _cases(folder / "flow_io.safetensors").items():
            yield from _reference_internals(f"flow {case}", model, golden)
            for name, engine in engines.items():
                yield from _flow_case(f"flow {case}", name, engine, golden)


def _flow_inputs(golden: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, Floats]:
    """tokens [1, N], frame map [F] and cond [1, mels, F] of prompt and new tokens."""
    tokens = np.concatenate([golden["prompt_token"], golden["token"]], axis=1).astype(np.int64)
    frames = mel_frames(tokens.shape[1])
    known = golden["prompt_feat"].transpose(0, 2, 1)  # [1, mels, M]
    cond = np.zeros((1, known.shape[1], frames), np.float32)
    cond[:, :, : known.shape[2]] = known
    return tokens, offline_frame_map(tokens.shape[1], frames).numpy(), cond


@torch.inference_mode()
def _reference_internals(label: str, model: Flow, golden: dict[str, np.ndarray]) -> Iterator[Result]:
    """What no engine exposes: the encoder's output and one unguided estimator call."""
    tokens, _, cond = _flow_inputs(golden)
    encoded = model.encode(torch.from_numpy(tokens)).numpy()
    yield compare_values(f"{label}, encoder", "torch", encoded, golden["encoder_out"], RELATIVE, relative=True)
    spks = model.speaker()
    yield compare_values(f"{label}, speaker", "torch", spks.numpy(), golden["spks"], RELATIVE, relative=True)
    x, mu, known = (torch.from_numpy(a) for a in (golden["noise"], golden["mu"], cond))
    made = model.decoder.estimator(x, mu, torch.tensor([0.37]), spks, known).numpy()
    yield compare_values(f"{label}, estimator", "torch", made, golden["estimator_t0_37"], RELATIVE, relative=True)


def _flow_case(label: str, name: str, engine: FlowEngine, golden: dict[str, np.ndarray]) -> Iterator[Result]:
    tokens, frame_token, cond = _flow_inputs(golden)
    mu = engine.condition(tokens, frame_token)
    yield compare_values(f"{label}, condition", name, mu, golden["mu"], RELATIVE, relative=True)
    x = golden["noise"]
    for start, stop in pairwise(time_grid(int(golden["steps"][0]))):
        x = x + np.float32(stop - start) * engine.velocity(x, mu, cond, start)
    mel = x[:, :, golden["prompt_feat"].shape[1] :]
    yield compare_values(f"{label}, mel", name, mel, golden["mel"], RELATIVE, relative=True)


def check_vocoder(folder: Path) -> Iterator[Result]:
    """f0, the harmonic source given f0, and the waveform given the source."""
    config, tensors = load_vocoder(folder)
    model = Vocoder(config).eval()
    model.load_state_dict(tensors)
    with TemporaryDirectory() as scratch:
        export_vocoder(model, Path(scratch))
        engines: dict[str, VocoderEngine] = {
            "torch": TorchVocoder(config, tensors),
            "onnxruntime": OnnxVocoder(Path(scratch), threads=1),
            "torch_cuda": TorchCudaVocoder(config, tensors, DEVICE, FLOAT32),
        }
        for case, golden in _cases(folder / "hift_io.safetensors").items():
            label = f"vocoder {case} frames"
            f0, phases, noise = (torch.from_numpy(golden[key]) for key in ("f0", "phases", "noise"))
            with torch.inference_mode():
                source = model.source(f0, phases, noise).numpy().reshape(golden["source"].shape)
            yield compare_values(f"{label}, source", "torch", source, golden["source"], WAVE)
            for name, engine in engines.items():
                yield compare_values(f"{label}, f0", name, engine.f0(golden["mel"]), golden["f0"], F0_HZ)
                wave = engine.synthesize(golden["mel"], golden["source"][:, 0])
                yield compare_values(f"{label}, wave", name, wave, golden["wave"], WAVE)
