"""Scales of a quantised conversion, from running token sequences through the reference modules.

    python -m build_engines.tensorrt_llm.calibrate --checkpoint DIR --tokens FILE --backbone fp8 --out FILE

FP8: the largest value seen / 448. AWQ (arXiv 2306.00978): inputs scaled by their mean size to a power that is searched
for the smallest error of a layer's output. No clipping of weights is searched. One decoder layer at a time is in
memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn
from torch.nn import functional as F

from build_engines.command import errors_reported
from build_engines.tensorrt_llm.formats import (
    ACTIVATION,
    FP8_MAX,
    INT4_MAX,
    PREQUANT,
    WEIGHT,
    Awq,
    Format,
    Fp8,
    format_named,
    quantise_int4,
)
from build_engines.tensorrt_llm.layout import EMBEDDING, Part
from build_engines.tensorrt_llm.plan import KV_CACHE, Plan
from build_engines.tensorrt_llm.scales import check_scales_file, save_scales
from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.checkpoint.language_model import ReleasedCheckpoint, open_language_model
from vita_audio.contract.errors import EngineError
from vita_audio.models.language_model import DecoderLayer, RMSNorm, rotary_table

#: Input rows of a layer that the AWQ search compares outputs on.
_SAMPLE_ROWS = 256
_POWERS = [step / 10 for step in range(11)]
_SMALLEST = 1e-6  # a scale float16 still holds


class Seen:
    """What went into a linear layer: largest |x|, mean |x| of each input, and the first rows."""

    def __init__(self, linear: nn.Module) -> None:
        self.largest, self.rows = torch.tensor(0.0), 0
        self.total: Tensor = torch.tensor(0.0)
        self.sample: list[Tensor] = []
        linear.register_forward_pre_hook(self._see)

    @property
    def mean(self) -> Tensor:
        return self.total / self.rows

    def _see(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]  # [rows, in]
        self.largest = torch.maximum(self.largest, x.abs().max())
        self.total = self.total + x.abs().sum(0)
        if self.rows < _SAMPLE_ROWS:
            self.sample.append(x[: _SAMPLE_ROWS - self.rows].clone())
        self.rows += len(x)


def fp8_scales(weights: Mapping[str, Tensor], seen: Seen) -> dict[str, Tensor]:
    """Scales of layers (released name -> weight) that read one input."""
    scales = {}
    for name, weight in weights.items():
        scales[f"{name}.{ACTIVATION}"] = fp8_scale(seen.largest)
        scales[f"{name}.{WEIGHT}"] = fp8_scale(weight.abs().max())
    return scales


def fp8_scale(largest: Tensor) -> Tensor:
    return torch.where(largest > 0, largest.float() / FP8_MAX, 1.0)


def awq_scales(weights: Mapping[str, Tensor], seen: Seen, group: int) -> dict[str, Tensor]:
    """Scales of layers (released name -> weight [out, in]) that read one input and share its prequant scale."""
    sample = torch.cat(seen.sample)
    candidates = [_awq_candidate(weights, seen.mean, power, group) for power in _POWERS]  # power 0: plain rounding
    errors = [
        sum(float(F.linear(sample, rounded - weights[name]).square().sum()) for name, rounded in tried.items())
        for tried in (_awq_rounded(weights, scales) for scales in candidates)
    ]
    return candidates[errors.index(min(errors))]


def calibrate(
    source: ReleasedCheckpoint,
    sequences: Sequence[Sequence[int]],
    formats: Mapping[Part, Format],
    on_layer: Callable[[], None] = lambda: None,
) -> dict[str, Tensor]:
    """Scales of every linear layer of the parts that are quantised, and of the KV cache of FP8 parts.

    Args:
        sequences: token ids, prompt and answer, as the model will see them.
        on_layer: called after each decoder layer.

    Raises:
        EngineError: a sequence is too short to reach the last MCTP module, or holds an id the model does not have.
    """
    config = source.config
    _check_sequences(sequences, config.vocab_size, config.mctp_modules + 2)
    scales: dict[str, Tensor] = {}
    with torch.inference_mode():
        table = source.read(f"{EMBEDDING}.weight")
        embedded = [table[torch.tensor(ids)].float() for ids in sequences]  # each [tokens, hidden]
        del table
        hidden = embedded
        for index in range(config.backbone_layers):
            hidden = _run_layer(source, index, hidden, formats.get(Part.BACKBONE), scales)
            on_layer()
        norm = _norm(source, "model.norm")
        hidden = [norm(x) for x in hidden]
        for k in range(config.mctp_modules):
            form = formats.get(Part.MCTP)
            hidden = [  # row j: token j + k + 1 with H_k[j]; the last row has no token yet
                torch.cat([e, h], dim=-1)
                for e, h in zip(
                    map(_norm(source, f"mtp_embed_norms.{k}"), (x[k + 1 :] for x in embedded)),
                    map(_norm(source, f"mtp_hidden_norms.{k}"), (x[:-1] for x in hidden)),
                    strict=True,
                )
            ]
            weight = source.read(f"mtp_projs.{k}.weight").float()
            projection = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            projection.load_state_dict({"weight": weight}, assign=True)
            with _watched({f"mtp_projs.{k}": projection}, [(f"mtp_projs.{k}",)], form, scales):
                hidden = [projection(x) for x in hidden]
            hidden = _run_layer(source, config.backbone_layers + k, hidden, form, scales)
            hidden = [norm(x) for x in hidden]
            on_layer()
    return scales


def _run_layer(
    source: ReleasedCheckpoint, index: int, hidden: Sequence[Tensor], form: Format | None, scales: dict[str, Tensor]
) -> list[Tensor]:
    """One decoder layer over every sequence [tokens, hidden]; adds its scales."""
    config, name = source.config, f"model.layers.{index}"
    with torch.device("meta"):
        layer = DecoderLayer(config)
    tensors = {key: source.read(f"{name}.{key}").float() for key in layer.state_dict()}
    layer.load_state_dict(tensors, assign=True)
    linears = {f"{name}.{path}": part for path, part in layer.named_modules() if isinstance(part, nn.Linear)}
    q, k, v, o, gate, up, down = linears
    cached = torch.tensor(0.0)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # each [tokens, heads, dim]
        nonlocal cached
        cached = torch.stack([cached, k.abs().max(), v.abs().max()]).max()
        q1, k1, v1 = (x.transpose(0, 1)[None] for x in (q, k, v))
        return F.scaled_dot_product_attention(q1, k1, v1, is_causal=True, enable_gqa=True)[0].transpose(0, 1)

    with _watched(linears, [(q, k, v), (o,), (gate, up), (down,)], form, scales):
        outputs = []
        for x in hidden:
            cos, sin = rotary_table(torch.arange(len(x)), config.head_dim, config.rope_theta)
            outputs.append(layer(x, cos, sin, attend))
    if isinstance(form, Fp8):
        scales[f"{name}.self_attn.{KV_CACHE}"] = fp8_scale(cached)
    return outputs


@contextmanager
def _watched(
    linears: Mapping[str, nn.Linear],
    groups: Sequence[tuple[str, ...]],
    form: Format | None,
    scales: dict[str, Tensor],
) -> Iterator[None]:
    """While it is open linear layers are watched; then the scales of each group, which reads one input, are added."""
    seen = {group: Seen(linears[group[0]]) for group in groups}
    yield
    for group, inputs in seen.items():
        weights = {name: linears[name].weight for name in group}
        if isinstance(form, Fp8):
            scales |= fp8_scales(weights, inputs)
        elif isinstance(form, Awq):
            scales |= awq_scales(weights, inputs, form.group)


def _awq_candidate(weights: Mapping[str, Tensor], mean: Tensor, power: float, group: int) -> dict[str, Tensor]:
    """Scales that enlarge the weights of an input by its mean size to a power, the middle of the range at 1."""
    enlarge = mean.clamp(min=1e-4) ** power
    enlarge = enlarge / (enlarge.max() * enlarge.min()).sqrt()
    scales = {}
    for name, weight in weights.items():
        largest = (weight * enlarge).abs().unflatten(-1, (-1, group)).amax(-1)  # [out, in / group]
        scales[f"{name}.{WEIGHT}"] = (largest / INT4_MAX).clamp(min=_SMALLEST)
        scales[f"{name}.{PREQUANT}"] = 1 / enlarge
    return scales


def _awq_rounded(weights: Mapping[str, Tensor], scales: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights as the engine will see them."""
    rounded = {}
    for name, weight in weights.items():
        scale, prequant = scales[f"{name}.{WEIGHT}"], scales[f"{name}.{PREQUANT}"]
        values = quantise_int4(weight / prequant, scale).unflatten(-1, (scale.shape[-1], -1))
        rounded[name] = (values * scale[..., None]).flatten(-2) * prequant
    return rounded


def _norm(source: ReleasedCheckpoint, name: str) -> RMSNorm:
    norm = RMSNorm(source.config.hidden_size, source.config.rms_norm_eps)
    norm.load_state_dict({"weight": source.read(f"{name}.weight").float()})
    return norm


def _check_sequences(sequences: Sequence[Sequence[int]], vocab_size: int, shortest: int) -> None:
    if not sequences:
        raise EngineError("--tokens: no sequence is given; give at least one, better some hundred")
    for number, ids in enumerate(sequences, 1):
        if len(ids) < shortest:
            raise EngineError(f"--tokens: sequence {number} has {len(ids)} ids, at least {shortest} are needed")
        if wrong := [token for token in ids if not 0 <= token < vocab_size]:
            raise EngineError(f"--tokens: sequence {number} holds id {wrong[0]}, must be 0..{vocab_size - 1}")


def main(
    checkpoint: Annotated[Path, typer.Option(help="Released language model: config.json and safetensors.")],
    tokens: Annotated[Path, typer.Option(help="Sequences to run: a JSON list of token ids on each line.")],
    out: Annotated[Path, typer.Option(help="Scales file to write: .safetensors or .json.")],
    backbone: Annotated[str, typer.Option(help="What the backbone will be: none, fp8 or w4a16_awq.")] = "none",
    mctp: Annotated[str, typer.Option(help="What the MCTP modules will be: none, fp8 or w4a16_awq.")] = "none",
) -> None:
    """Measure the scales a quantised conversion needs, on the CPU, one decoder layer in memory at a time."""
    console = Console(highlight=False)
    with errors_reported():
        formats = {Part.BACKBONE: format_named(backbone, "--backbone"), Part.MCTP: format_named(mctp, "--mctp")}
        if not any(form.algorithm for form in formats.values()):
            raise EngineError("--backbone, --mctp: both are none: there is nothing to calibrate")
        check_scales_file(out)
        source, sequences = open_language_model(checkpoint), read_sequences(tokens)
        _check_formats(source.config, formats)
        columns = (TextColumn("decoder layers"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("", total=source.config.num_hidden_layers)
            scales = calibrate(source, sequences, formats, lambda: progress.advance(task))
        save_scales(out, scales)
    console.print(f"{out}: {len(scales)} scales", markup=False, soft_wrap=True)


def _check_formats(config: LanguageModelConfig, formats: Mapping[Part, Format]) -> None:
    """Raises EngineError for what a conversion would refuse after the run: widths, and modules that are not there."""
    for part, form in formats.items():
        if form.algorithm is None:
            continue
        if part is Part.MCTP and not config.mctp_modules:
            raise EngineError(f"--mctp: {form.name} is for MCTP modules and this checkpoint has none; leave it out")
        Plan(part, config, linear_format=form).check()


def read_sequences(path: Path) -> list[list[int]]:
    """Token ids, one JSON list on each line. Raises EngineError naming the first line that is none."""
    sequences = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            ids = json.loads(line)
        except (ValueError, RecursionError):  # no JSON, or no UTF-8
            ids = None
        if not isinstance(ids, list) or not all(type(token) is int for token in ids):
            raise EngineError(f"{path}: line {number} is not a JSON list of token ids")
        sequences.append(ids)
    return sequences


if __name__ == "__main__":
    typer.run(main)
