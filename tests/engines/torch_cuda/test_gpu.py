"""The fixed-shape engine on a CUDA device: captured graphs, the split attention kernel, both number types.

Needs little more than PyTorch and pytest: on a bare GPU machine
`python -m pytest --noconftest tests/engines/torch_cuda/test_gpu.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
import torch

import torch_cuda_split_attention as split
from generation_doubles import generate
from spoken_prompts import spoken_requests
from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.checkpoint.random_weights.audio import flow_weights, speech_tokenizer_weights, vocoder_weights
from vita_audio.checkpoint.sizes import TINY
from vita_audio.contract.messages import GenerationSettings
from vita_audio.contract.modes import NAMED_MODES
from vita_audio.decoding.decoder import StreamingDecoder
from vita_audio.engines.interface import LanguageModelEngine
from vita_audio.engines.torch.audio import TorchFlow, TorchSpeechTokenizer, TorchVocoder
from vita_audio.engines.torch.language_model import TorchLanguageModel
from vita_audio.engines.torch_cuda.audio import TorchCudaFlow, TorchCudaVocoder
from vita_audio.engines.torch_cuda.engine import TorchCudaLanguageModel
from vita_audio.engines.torch_cuda.kernels.names import NAMES
from vita_audio.engines.torch_cuda.kernels.operations import operations
from vita_audio.engines.torch_cuda.kernels.self_check import Case, faulty
from vita_audio.engines.torch_cuda.sensevoice import TorchCudaSenseVoice
from vita_audio.engines.torch_cuda.settings import Settings
from vita_audio.engines.torch_cuda.speech_tokenizer import TorchCudaSpeechTokenizer
from vita_audio.engines.torch_cuda.weights import load_weights
from vita_audio.generation.request import GenerationRequest
from vita_audio.models.language_model import LanguageModel
from vita_audio.models.sensevoice import SenseVoice

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

CONFIG = LanguageModelConfig(600, 128, 192, 3 + 10, 4, 2, 10, 512)
SEVEN_B = LanguageModelConfig(168072, 3584, 18944, 28 + 10, 28, 4, 10, 32768)


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = LanguageModel(CONFIG)
    with torch.no_grad():
        model.lm_head.weight.mul_(6)
    return dict(model.state_dict())


def make(dtype: torch.dtype = torch.float32, **options: object) -> TorchCudaLanguageModel:
    loaded = load_weights(CONFIG, weights(), torch.device("cuda"), dtype)
    return TorchCudaLanguageModel(CONFIG, loaded, Settings(4, 256, **options))  # type: ignore[arg-type]


def requests(pattern: tuple[int, ...]) -> list[GenerationRequest]:
    """Sampled and greedy, short and long prompts, more streams than slots."""
    rows = [([5, 6, 7], 0.9, 20, 0.9), ([9] * 90, 1.3, 0, 0.7), ([1, 2], 0.7, 50, 1.0), ([1, 2], 0.0, 0, 1.0)]
    rows += [(list(range(40)), 1.0, 50, 1.0)]
    return [
        GenerationRequest(p, GenerationSettings("chat", "test", pattern, 50, t, k, top_p, 1.05, seed))
        for seed, (p, t, k, top_p) in enumerate(rows)
    ]


def run(engine: LanguageModelEngine, pattern: tuple[int, ...]) -> list[list[int]]:
    return scheduled(engine, requests(pattern))


def scheduled(engine: LanguageModelEngine, asked: Sequence[GenerationRequest]) -> list[list[int]]:
    return generate(engine, asked, 32)


def test_captured_blocks_of_speech_give_the_reference_s_tokens() -> None:
    config, device = TINY.speech_tokenizer, torch.device("cuda")
    tensors = speech_tokenizer_weights(config, 0, device)
    engine, reference = TorchCudaSpeechTokenizer(config, tensors, device), TorchSpeechTokenizer(config, tensors, device)
    assert engine.prepare() == 2 * engine.sizes.most_blocks
    draw = np.random.default_rng(0)
    pieces = [(draw.standard_normal((config.num_mel_bins, 960), np.float32), valid) for valid in (960, 701)]
    for ids, piece in zip(engine.tokens_of(pieces), pieces, strict=True):
        assert (ids == reference.tokens(*piece)).mean() > 0.95  # near ties of random codes


def test_captured_clips_give_the_reference_s_embeddings() -> None:
    config, device = TINY.sensevoice, torch.device("cuda")
    torch.manual_seed(0)
    model = SenseVoice(config).eval().requires_grad_(False)
    tables = {name: torch.zeros(560) for name in ("feature_shift", "feature_scale")}
    engine = TorchCudaSenseVoice(config, model.state_dict() | tables, device)
    assert engine.prepare(256) == 5
    for rows in (1, 60, 61, 170, 300):  # the last is longer than what was captured
        features = np.random.default_rng(rows).standard_normal((rows, 560), np.float32)
        wanted = model(torch.from_numpy(features)[None], torch.tensor([rows]))[0].numpy()
        assert np.abs(engine.embeddings(features) - wanted).max() < 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("prepared", [False, True])
def test_rows_of_embeddings_in_prompts(prepared: bool) -> None:
    """By the programs that were captured before there was any."""
    loaded = load_weights(CONFIG, weights(), torch.device("cuda"), torch.float32, prompt_rows=512)
    engine = TorchCudaLanguageModel(CONFIG, loaded, Settings(4, 256))
    programs = engine.prepare(32) if prepared else 0
    spoken = spoken_requests(CONFIG.hidden_size, (1, 10))
    wanted = TorchLanguageModel(CONFIG, weights(), 4, 256, embedded=True)
    assert scheduled(engine, spoken) == scheduled(wanted, spoken)
    assert not prepared or len(engine.programs) == programs


@pytest.mark.parametrize("off", [(), ("pdl",), NAMES], ids=["kernels", "kernels_no_pdl", "references"])
def test_float32_equals_the_reference(off: tuple[str, ...]) -> None:
    """Captured, in every mode, batched with joins and leaves: the tokens of the CPU reference."""
    reference, engine = TorchLanguageModel(CONFIG, weights(), 4, 256), make(kernels_off=frozenset(off))
    assert engine.forward.kernels_off == frozenset(off)
    for pattern in (*NAMED_MODES.values(), (2, 3, 1, 7)):
        assert run(engine, pattern) == run(reference, pattern)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_no_kernel_is_wrong_at_the_sizes_of_a_7b(dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    """The check of an engine's start, without its weights."""
    gpu = torch.cuda.get_device_properties(0)
    capability, like = 10 * gpu.major + gpu.minor, torch.empty(0, dtype=dtype, device="cuda")
    case = Case(SEVEN_B, 4096, like, gpu.multi_processor_count, capability)
    off = faulty(partial(operations, like.device, capability), case, frozenset())
    assert (off, caplog.messages) == (frozenset(), [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_captured_equals_eager(dtype: torch.dtype) -> None:
    for pattern in NAMED_MODES.values():
        assert run(make(dtype), pattern) == run(make(dtype, capture=False), pattern)


def test_prepared_engine_gives_the_same_tokens() -> None:
    engine = make()
    assert engine.prepare() > 20
    assert run(engine, (1, 10, 4, 10)) == run(make(), (1, 10, 4, 10))


@pytest.mark.parametrize(
    ("dtype", "limit"),
    [(torch.float32, 1e-5), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)],
    ids=["float32", "float16", "bfloat16"],
)
@pytest.mark.parametrize(
    "size", [*split.SIZES, (14, 2, 64, 132), (28, 4, 128, 132)], ids=lambda size: "x".join(map(str, size[:3]))
)
def test_split_attention(size: tuple[int, int, int, int], dtype: torch.dtype, limit: float) -> None:
    assert split.largest_difference(size, "cuda", dtype) < limit


@pytest.mark.parametrize(("precision", "limit"), [("float32", 33), ("tf32", 600)])
def test_audio_graphs_sound_as_eager_engines(precision: str, limit: int) -> None:
    """Chunks of a padded batch, then ends of different lengths; `limit` in steps of 16-bit samples."""
    flow, vocoder = flow_weights(TINY.flow, 0), vocoder_weights(TINY.vocoder, 0)
    device = torch.device("cuda")
    waves = []
    for engines in (
        (TorchFlow(TINY.flow, flow, device), TorchVocoder(TINY.vocoder, vocoder, device)),
        (TorchCudaFlow(TINY.flow, flow, device, precision), TorchCudaVocoder(TINY.vocoder, vocoder, device, precision)),
    ):
        decoder = StreamingDecoder(*engines)
        decoder.warm_up(
            4, first_chunk_only=not isinstance(engines[1], TorchCudaVocoder)
        )  # captures all that is decoded below
        states = [decoder.init(seed) for seed in range(3)]
        for state in states:
            decoder.feed(state, range(100))
        parts = []
        while decoder.due(states[0]) is not None:
            parts += decoder.step(states)
        for more, state in enumerate(states):
            parts += [decoder.push(state, range(more)), decoder.finish(state)]
        waves.append(np.concatenate(parts).astype(np.int32))
    assert np.abs(waves[0]).max() > 1000
    assert np.abs(waves[0] - waves[1]).max() <= limit
