"""FP8 and 4-bit AWQ: the arithmetic against small independent references, scales files, and calibration."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from build_engines.tensorrt_llm.calibrate import Seen, awq_scales, calibrate
from build_engines.tensorrt_llm.config_file import check_part
from build_engines.tensorrt_llm.convert import Options, convert
from build_engines.tensorrt_llm.formats import FORMATS, Awq, Fp8, pack_int4, quantise_fp8, quantise_int4, unpack_int4
from build_engines.tensorrt_llm.layout import Part
from build_engines.tensorrt_llm.plan import Plan
from build_engines.tensorrt_llm.scales import load_scales, save_scales
from build_engines.tensorrt_llm.verify import restore, verify_part
from tensorrt_llm_checkpoints import SMALL, WIDE, sequences, write_released
from vita_audio.checkpoint.language_model import open_language_model
from vita_audio.contract.errors import EngineError
from vita_audio.models.language_model import LanguageModel

BOTH_FP8 = {Part.BACKBONE: Fp8(), Part.MCTP: Fp8()}
BOTH_AWQ = {Part.BACKBONE: Awq(), Part.MCTP: Awq()}


def e4m3_values() -> dict[int, float]:
    """Code -> value of every finite float8 e4m3fn, from its definition: sign, 4 bits exponent (bias 7), 3 mantissa."""
    values = {}
    for code in range(256):
        sign, exponent, mantissa = (-1.0) ** (code >> 7), (code >> 3) & 15, code & 7
        if (exponent, mantissa) == (15, 7):
            continue  # not a number
        size = mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
        values[code] = sign * size
    return values


def nearest_e4m3(x: float) -> float:
    """Nearest value, ties to the even code, the ends beyond the range."""
    candidates = sorted(e4m3_values().items(), key=lambda item: (abs(item[1] - x), item[0] & 1))
    return candidates[0][1]


@settings(max_examples=60, deadline=None)
@given(st.floats(-600, 600, width=32), st.sampled_from([0.25, 1.0, 3.7e-3]))
def test_fp8_cast(x: float, scale: float) -> None:
    got = quantise_fp8(torch.tensor([x]), torch.tensor(scale)).float().item()
    assert got == nearest_e4m3(float(np.float32(x) / np.float32(scale)))


def test_fp8_cast_ties_and_ends() -> None:
    values = torch.tensor([17.0, 19.0, 21.0, 448.0, 464.1, 1e9, -1e9, 2.0**-10, 1.5 * 2.0**-9])
    wanted = [16.0, 20.0, 20.0, 448.0, 448.0, 448.0, -448.0, 0.0, 2.0**-8]
    assert quantise_fp8(values, torch.tensor(1.0)).float().tolist() == wanted


def test_int4_rounding_and_packing() -> None:
    """An even row in the low half of a byte, the odd row after it in the high one, two's complement."""
    weight = torch.tensor([[0.5, 1.5, -8.4, 9.0], [-0.5, -1.5, -2.0, 7.0]])
    values = quantise_int4(weight, torch.tensor([[1.0, 1.0], [0.5, 1.0]]))  # two groups of two
    assert values.tolist() == [[0, 2, -8, 7], [-1, -3, -2, 7]]
    packed = pack_int4(values)
    assert packed.dtype == torch.int8
    assert packed.view(torch.uint8).tolist() == [[0xF0, 0xD2, 0xE8, 0x77]]
    every = torch.arange(-8, 8, dtype=torch.int8).repeat(16, 2)
    assert torch.equal(unpack_int4(pack_int4(every)), every)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_int4_against_numpy(seed: int) -> None:
    draw = np.random.default_rng(seed)
    weight, scale = draw.normal(size=(6, 8)).astype(np.float32), draw.uniform(0.05, 0.6, (6, 2)).astype(np.float32)
    got = pack_int4(quantise_int4(torch.from_numpy(weight), torch.from_numpy(scale))).view(torch.uint8).numpy()
    for row in range(6):
        for column in range(8):
            value = min(7, max(-8, int(np.rint(weight[row, column] / scale[row, column // 4]))))
            byte = int(got[row // 2, column])
            assert (byte >> 4 if row % 2 else byte & 15) == value % 16


def fp8_given() -> dict[str, Tensor]:
    """A scale for everything, each another number."""
    plans = [Plan(part, SMALL, linear_format=Fp8(), fp8_kv_cache=True) for part in Part]
    names = sorted({name for plan in plans for name in plan.scale_shapes})
    return {name: torch.tensor(0.002 + 0.0001 * number) for number, name in enumerate(names)}


def test_a_recalibration_converts_again(tmp_path: Path) -> None:
    """Scales decide what the weights become: other scales make another part, equal ones are left alone."""
    write_released(tmp_path / "released")
    options = Options(formats=BOTH_FP8, fp8_kv_cache=True, scales=tmp_path / "scales.json")
    weights, seen = tmp_path / "out" / "backbone" / "rank0.safetensors", []
    for factor in (1.0, 1.0, 2.0):
        save_scales(tmp_path / "scales.json", {name: factor * scale for name, scale in fp8_given().items()})
        convert(tmp_path / "released", tmp_path / "out", options)
        seen.append(weights.read_bytes())
    assert seen[0] == seen[1] != seen[2]


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_fp8_checkpoint_from_given_scales(tmp_path: Path, suffix: str) -> None:
    released = write_released(tmp_path / "released")
    scales = fp8_given()
    save_scales(tmp_path / f"scales{suffix}", scales)
    options = Options(tp=2, formats=BOTH_FP8, fp8_kv_cache=True, scales=tmp_path / f"scales{suffix}")
    convert(tmp_path / "released", tmp_path / "out", options)
    config = json.loads((tmp_path / "out" / "mctp" / "config.json").read_text())
    assert config["quantization"] == {
        "quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]
    }  # fmt: skip
    mctp = load_file(tmp_path / "out" / "mctp" / "rank1.safetensors")
    name, layer = "mctp.1.layer.attention", "model.layers.3.self_attn"
    weight_scale = max(scales[f"{layer}.{part}_proj.weights_scaling_factor"] for part in "qkv")
    input_scale = max(scales[f"{layer}.{part}_proj.activation_scaling_factor"] for part in "qkv")
    assert mctp[f"{name}.qkv.weights_scaling_factor"].tolist() == [weight_scale.item()]
    assert mctp[f"{name}.qkv.activation_scaling_factor"].tolist() == [input_scale.item()]
    assert mctp[f"{name}.kv_cache_scaling_factor"].tolist() == [scales[f"{layer}.kv_cache_scaling_factor"].item()]
    wanted = torch.cat(
        [released[f"{layer}.q_proj.weight"][16:], *(released[f"{layer}.{part}_proj.weight"][8:] for part in "kv")]
    )
    assert mctp[f"{name}.qkv.weight"].dtype == torch.float8_e4m3fn
    assert torch.equal(
        mctp[f"{name}.qkv.weight"].float(),
        (wanted.float() / weight_scale).clamp(-448, 448).to(torch.float8_e4m3fn).float(),
    )
    # gate and up are fused in the engine: one scale, so that nothing is rounded twice
    pair = [mctp[f"mctp.1.layer.mlp.{name}.weights_scaling_factor"] for name in ("fc", "gate")]
    assert torch.equal(*pair)
    assert {tensor.dtype for name, tensor in mctp.items() if "scaling_factor" in name} == {torch.float32}
    assert mctp["lm_head.weight"].dtype == mctp["mctp.1.layer.attention.qkv.bias"].dtype == torch.bfloat16
    assert not any(name.startswith(("lm_head.w", "vocab")) and "scaling" in name for name in mctp)
    assert check_part(tmp_path / "out" / "mctp").fp8_kv_cache


@pytest.mark.parametrize(("tp", "group"), [(1, 128), (2, 64)])
def test_awq_checkpoint_from_given_scales(tmp_path: Path, tp: int, group: int) -> None:
    released = write_released(tmp_path / "released", WIDE)
    form = Awq(group=group)
    plans = [Plan(part, WIDE, linear_format=form) for part in Part]
    draw = torch.Generator().manual_seed(3)
    scales: dict[str, Tensor] = {}
    for plan in plans:
        for module in plan.modules:
            for source in module.sources if module.linear else ():
                weight = released[f"{source}.weight"].float()
                key = f"{module.shares[0]}.prequant_scaling_factor"  # one for all that read the same input
                prequant = scales.get(key, 0.5 + torch.rand(weight.shape[1], generator=draw))
                scales[f"{source}.prequant_scaling_factor"] = prequant
                grouped = (weight / prequant).unflatten(-1, (-1, group))
                scales[f"{source}.weights_scaling_factor"] = grouped.abs().amax(-1) / 7
    save_scales(tmp_path / "scales.safetensors", scales)
    options = Options(tp=tp, formats={Part.BACKBONE: form, Part.MCTP: form}, scales=tmp_path / "scales.safetensors")
    convert(tmp_path / "released", tmp_path / "out", options)
    config = json.loads((tmp_path / "out" / "backbone" / "config.json").read_text())
    assert config["quantization"] == {
        "quant_algo": "W4A16_AWQ", "kv_cache_quant_algo": None, "exclude_modules": ["lm_head"], "group_size": group,
        "has_zero_point": False, "pre_quant_scale": True,
    }  # fmt: skip

    last = load_file(tmp_path / "out" / "backbone" / f"rank{tp - 1}.safetensors")
    columns = slice(256 - 256 // tp, None)  # of down_proj: its inputs are shared out
    name, source = "transformer.layers.0.mlp.proj", "model.layers.0.mlp.down_proj"
    prequant = scales[f"{source}.prequant_scaling_factor"].bfloat16()[columns]
    assert torch.equal(last[f"{name}.prequant_scaling_factor"], prequant)
    scale = scales[f"{source}.weights_scaling_factor"].bfloat16()[:, columns.start // group :]
    assert torch.equal(last[f"{name}.weights_scaling_factor"], scale)
    weight = released[f"{source}.weight"][:, columns].float() / prequant.float()
    values = (weight / scale.float().repeat_interleave(group, 1)).round().clamp(-8, 7).int() % 16
    assert torch.equal(last[f"{name}.weight"].view(torch.uint8).int(), values[0::2] + 16 * values[1::2])
    qkv = last["transformer.layers.0.attention.qkv.weight"]
    assert (qkv.shape, qkv.dtype) == ((256 // tp // 2, 128), torch.int8)
    for part in Part:
        assert 0.0 < verify_part(open_language_model(tmp_path / "released"), tmp_path / "out" / part.value) < 0.2


def test_calibrated_fp8_scales_are_the_largest_values(tmp_path: Path) -> None:
    """Against hooks on the whole reference model, run in one piece."""
    released = write_released(tmp_path)
    ids = sequences(SMALL)
    scales = calibrate(open_language_model(tmp_path), ids, BOTH_FP8)
    model = LanguageModel(SMALL)
    model.load_state_dict({key: value.float() for key, value in released.items()})
    largest: dict[str, float] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):

            def see(module: torch.nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                largest[name] = max(largest.get(name, 0.0), inputs[0].abs().max().item())

            module.register_forward_pre_hook(see)
    cached: dict[int, float] = {}

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cached[layer] = max(cached.get(layer, 0.0), k.abs().max().item(), v.abs().max().item())
        q1, k1, v1 = (x.transpose(0, 1)[None] for x in (q, k, v))
        return F.scaled_dot_product_attention(q1, k1, v1, is_causal=True, enable_gqa=True)[0].transpose(0, 1)

    with torch.inference_mode():
        for row in map(torch.tensor, ids):
            positions = torch.arange(len(row))
            hidden = model.backbone(row, positions, lambda layer: partial(attend, layer))
            for module in range(3):
                rows = len(row) - module - 1
                hidden = model.mctp(
                    module, row[module + 1 :], hidden[:rows], positions[:rows], partial(attend, 2 + module)
                )
    assert set(scales) == {name for part in Part for name in Plan(part, SMALL, "bfloat16", 1, Fp8(), True).scale_shapes}
    for name, value in largest.items():
        assert scales[f"{name}.activation_scaling_factor"].item() == pytest.approx(value / 448, rel=1e-5)
        weight = released[f"{name}.weight"].float().abs().max().item()
        assert scales[f"{name}.weights_scaling_factor"].item() == pytest.approx(weight / 448)
    for layer, value in cached.items():
        name = f"model.layers.{layer}.self_attn.kv_cache_scaling_factor"
        assert scales[name].item() == pytest.approx(value / 448, rel=1e-5)


def test_awq_search_beats_plain_rounding() -> None:
    """Where one input is far larger than the rest its weights are kept finer; the layer's output shows it."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(64, 128, generator=draw) * torch.where(torch.arange(128) == 5, 40.0, 0.5)
    linear = torch.nn.Linear(128, 32, bias=False)
    torch.nn.init.normal_(linear.weight, generator=draw)
    seen = Seen(linear)
    linear(x)
    weight = linear.weight.detach()
    scales = awq_scales({"a": weight, "b": weight[:16]}, seen, 128)
    assert torch.equal(scales["a.prequant_scaling_factor"], scales["b.prequant_scaling_factor"])

    def error(scale: Tensor, prequant: Tensor) -> float:
        values = quantise_int4(weight / prequant, scale)
        return (F.linear(x, values * scale * prequant) - F.linear(x, weight)).norm().item()

    ones = torch.ones(128)
    plain = error(weight.abs().amax(-1, keepdim=True) / 7, ones)
    assert error(scales["a.weights_scaling_factor"], scales["a.prequant_scaling_factor"]) < 0.5 * plain


@pytest.mark.parametrize(
    ("formats", "similarity"),
    [(BOTH_FP8, 0.99), (BOTH_AWQ, 0.9), ({Part.BACKBONE: Fp8(), Part.MCTP: Awq()}, 0.95)],
)
def test_calibrate_convert_restore(tmp_path: Path, formats: dict[Part, Fp8 | Awq], similarity: float) -> None:
    """A calibrated model still computes nearly the same hidden states (random weights: nothing averages out)."""
    released = write_released(tmp_path / "released", WIDE)
    source, ids = open_language_model(tmp_path / "released"), sequences(WIDE)
    save_scales(tmp_path / "scales.safetensors", calibrate(source, ids, formats))
    options = Options(formats=formats, scales=tmp_path / "scales.safetensors")
    convert(tmp_path / "released", tmp_path / "out", options)
    back: dict[str, Tensor] = {}
    for part in Part:
        assert 0.0 < verify_part(source, tmp_path / "out" / part.value) < 0.3
        back |= {restored.key: restored.tensor.float() for restored in restore(tmp_path / "out" / part.value)}

    def hidden(tensors: dict[str, Tensor]) -> Tensor:
        model = LanguageModel(WIDE)
        model.load_state_dict({key: value.float() for key, value in tensors.items()})
        row = torch.tensor(ids[0])
        positions = torch.arange(len(row))

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q1, k1, v1 = (x.transpose(0, 1)[None] for x in (q, k, v))
            return F.scaled_dot_product_attention(q1, k1, v1, is_causal=True, enable_gqa=True)[0].transpose(0, 1)

        with torch.inference_mode():
            states = model.backbone(row, positions, lambda layer: attend)
            return model.mctp(0, row[1:], states[:-1], positions[:-1], attend)

    assert F.cosine_similarity(hidden(back), hidden(released), dim=-1).min() > similarity


def test_calibration_refuses_sequences(tmp_path: Path) -> None:
    write_released(tmp_path)
    source = open_language_model(tmp_path)
    for ids, words in (
        ([], "no sequence"),
        ([[1, 2, 3, 4]], "sequence 1 has 4 ids, at least 5"),
        ([[1] * 9, [1] * 8 + [61]], "sequence 2 holds id 61, must be 0..60"),
    ):
        with pytest.raises(EngineError, match=words):
            calibrate(source, ids, BOTH_FP8)


def test_scales_files_with_faults(tmp_path: Path) -> None:
    plans = [Plan(part, SMALL, linear_format=Fp8()) for part in Part]
    good = fp8_given()
    path = tmp_path / "scales.safetensors"
    first = "model.layers.0.self_attn.q_proj.activation_scaling_factor"

    def fault(scales: dict[str, Tensor] | None, *words: str, of: list[Plan] = plans) -> None:
        if scales is not None:
            save_scales(path, scales)
        with pytest.raises(EngineError) as caught:
            load_scales(path if scales is not None else None, of)
        assert "\n" not in str(caught.value)
        assert all(word in str(caught.value) for word in words), str(caught.value)

    fault(None, "--scales", "no file is named", "calibrate")
    fault({name: value for name, value in good.items() if name != first}, "1 of 76 scales are missing", first)
    fault(good | {first: torch.tensor(0.0)}, first, "must be positive and finite")
    fault(good | {first: torch.ones(3)}, f"{first} is [3], must be []")
    awq = [Plan(Part.BACKBONE, WIDE, linear_format=FORMATS["w4a16_awq"])]
    fault(good, "scales are missing", "prequant_scaling_factor", of=awq)
    scales = {name: torch.ones(shape) for name, shape in awq[0].scale_shapes.items()}
    unequal = "model.layers.0.self_attn.k_proj.prequant_scaling_factor"
    fault(scales | {unequal: torch.full((128,), 2.0)}, f"{unequal} must equal", "same input", of=awq)
    tiny = "model.layers.0.self_attn.k_proj.weights_scaling_factor"
    halves = [replace(awq[0], dtype="float16")]
    fault(scales | {tiny: scales[tiny] * 1e-9}, tiny, "float16", of=halves)  # 0 in float16
    path.write_bytes(b"nothing")
    with pytest.raises(EngineError, match="not a readable scales file"):
        load_scales(path, plans)
    with pytest.raises(EngineError, match=r"ends with \.safetensors or \.json"):
        save_scales(tmp_path / "scales.txt", good)
    assert load_scales(None, [Plan(Part.BACKBONE, SMALL)]) == {}
