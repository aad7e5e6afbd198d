"""FP8 matrices: how far they are from what they were made of, and an engine over them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from build_engines.torch_cuda.formats import Fp8Parts, encode, outline
from language_models import random_weights, request
from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.checkpoint.language_model import language_model_shapes
from vita_audio.contract.errors import EngineError
from vita_audio.contract.modes import NAMED_MODES
from vita_audio.engines.interface import LanguageModelEngine
from vita_audio.engines.torch.language_model import TorchLanguageModel
from vita_audio.engines.torch_cuda.engine import TorchCudaLanguageModel
from vita_audio.engines.torch_cuda.fp8 import FP8_MAX, Fp8Matrix, dequantise, part, quantise, rows
from vita_audio.engines.torch_cuda.settings import Settings
from vita_audio.engines.torch_cuda.weights import MCTP_HEAD, SCALE, Weights, load_weights
from vita_audio.generation.scheduler import Scheduler

CPU = torch.device("cpu")
CONFIG = LanguageModelConfig(300, 64, 96, 2 + 4, 4, 2, 4, 512)


@settings(deadline=None)
@given(
    seed=st.integers(0, 999), exponent=st.integers(-140, 120), dtype=st.sampled_from([torch.bfloat16, torch.float32])
)
def test_as_near_as_four_bits_are(seed: int, exponent: int, dtype: torch.dtype) -> None:
    """Half a step of 3 bits of fraction, or of the smallest number; never beyond the largest of a row."""
    matrix = (torch.randn(5, 7, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent).to(dtype)
    made = quantise(matrix)
    assert (made.values.dtype, made.scale.dtype) == (torch.float8_e4m3fn, torch.float32)
    back, wide = dequantise(made, torch.float32), matrix.float()
    largest = wide.abs().amax(1, keepdim=True)
    normal = (largest / FP8_MAX >= torch.finfo(torch.float32).tiny).squeeze(1)
    allowed = torch.maximum(wide.abs() * 2**-4, made.scale[:, None] * 2**-10) * 1.0001
    assert ((back - wide).abs() <= allowed)[normal].all()
    assert (back[~normal] == 0).all()
    assert (back.abs() <= largest * 1.0001).all()


def test_zeros_and_one_large_number() -> None:
    matrix = torch.zeros(3, 4)
    matrix[1, 2], matrix[2] = -3e38, 1.0
    assert torch.equal(dequantise(quantise(matrix), torch.float32)[[0, 2]], matrix[[0, 2]])
    assert dequantise(quantise(matrix), torch.float32)[1, 2] == pytest.approx(-3e38)
    assert quantise(matrix).scale[0] == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_not_finite(bad: float) -> None:
    matrix = torch.ones(3, 4)
    matrix[1, 3] = bad
    with pytest.raises(EngineError, match=r"^lm_head\.weight: row 1 holds NaN or infinity") as caught:
        quantise(matrix, "lm_head.weight")
    assert "\n" not in str(caught.value)


def test_rows_of_a_matrix() -> None:
    plain = torch.randn(6, 3)
    eight = quantise(plain)
    for matrix in (plain, eight):
        assert rows(matrix) == 6
        assert rows(part(matrix, -2)) == 2
    cut = part(eight, 1, 3)
    assert isinstance(cut, Fp8Matrix)
    assert torch.equal(dequantise(cut, torch.float32), dequantise(eight, torch.float32)[1:3])


def encoded(parts: Fp8Parts, config: LanguageModelConfig = CONFIG) -> dict[str, Tensor]:
    tensors = random_weights(config)
    made = dict(encode(config, parts, ((key, tensors[key]) for key in language_model_shapes(config))))
    assert {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in made.items()} == outline(config, parts)
    assert list(made) == list(outline(config, parts))
    return made


def decoded(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As a checkpoint in float32, with the modules' head beside it."""
    return {
        key: dequantise(Fp8Matrix(tensor, tensors[key + SCALE]), torch.float32)
        if key + SCALE in tensors
        else tensor.float()
        for key, tensor in tensors.items()
        if not key.endswith(SCALE)
    }


def generated(engine: LanguageModelEngine) -> list[list[int]]:
    scheduler = Scheduler(engine, end_tokens=(), prefill_chunk=16)
    streams = [
        scheduler.submit(f"{mode} {sampled}", request([5, 6, 7] * 9, pattern, 40, temperature=sampled, seed=3))
        for mode, pattern in (("boost", (1, 4)), ("vanilla", NAMED_MODES["vanilla"]))
        for sampled in (0.0, 1.0)
    ]
    while not scheduler.idle:
        scheduler.step()
    return [stream.tokens for stream in streams]


def engine(weights: Weights, first_id: int = 0) -> TorchCudaLanguageModel:
    return TorchCudaLanguageModel(CONFIG, weights, Settings(4, 128, first_id))


@pytest.mark.parametrize("parts", [Fp8Parts(True), Fp8Parts(mctp=True), Fp8Parts(True, True)])
def test_tokens_are_those_of_the_dequantised_checkpoint(parts: Fp8Parts) -> None:
    tensors = encoded(parts)
    weights = load_weights(CONFIG, tensors, CPU, torch.float32)
    assert isinstance(weights.layers[0].qkv, Fp8Matrix) == parts.backbone
    assert isinstance(weights.modules[-1].projection, Fp8Matrix) == parts.mctp
    assert weights.mctp_head is weights.head
    made = generated(engine(weights))
    assert made == generated(TorchLanguageModel(CONFIG, decoded(tensors), 4, 128))
    assert made != generated(TorchLanguageModel(CONFIG, random_weights(CONFIG), 4, 128))


@pytest.mark.parametrize("first_id", [0, 120])
def test_head_of_the_modules(first_id: int) -> None:
    """It is another matrix than the backbone's; a vanilla stream reads that one alone."""
    tensors = encoded(Fp8Parts(mctp_head=True, first_id=first_id))
    weights = load_weights(CONFIG, tensors, CPU, torch.float32)
    assert rows(weights.mctp_head) == 300 - first_id
    made = generated(engine(weights, first_id))
    plain = weights._replace(mctp_head=decoded(tensors)[MCTP_HEAD])
    assert made == generated(engine(plain, first_id))
    whole = generated(engine(weights._replace(mctp_head=weights.head), first_id))
    assert made[2:] == whole[2:]
    assert made[:2] != whole[:2]


def test_a_head_that_begins_later_is_refused() -> None:
    weights = load_weights(CONFIG, encoded(Fp8Parts(mctp_head=True, first_id=120)), CPU, torch.float32)
    with pytest.raises(EngineError, match="first_mctp_id is 0, must be at least 120, where the FP8 head"):
        engine(weights)


@pytest.mark.parametrize("tie", [False, True])
def test_a_tied_head_and_no_modules(tie: bool) -> None:
    config = LanguageModelConfig(30, 16, 24, 2 + 2, 2, 1, 2, 64, tie_word_embeddings=tie)
    assert MCTP_HEAD in encoded_shapes(config)
    none = LanguageModelConfig(30, 16, 24, 2, 2, 1, 0, 64, tie_word_embeddings=tie)
    assert MCTP_HEAD not in encoded_shapes(none)


def encoded_shapes(config: LanguageModelConfig) -> dict[str, object]:
    return dict(outline(config, Fp8Parts(True, True, True)))
