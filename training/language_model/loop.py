"""The training loop of every stage and of fine-tuning: accumulation, mixed precision, held-out scores per level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from training.device import has_bfloat16
from training.language_model.batch import Batch, pack
from training.language_model.batch_stream import BatchStream
from training.language_model.forward import LevelLosses, TrainedLanguageModel
from training.language_model.muon import Muon
from training.language_model.token_corruption import corrupt_tokens
from training.language_model.token_set import TokenSet
from training.run import Run, RunSettings, adamw, clip, step_generator
from training.workers import Each, add_gradients, workers

_MUON_RATE = 2.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process computes and with whom.

    Attributes:
        workers: threads that compute one pack each.
        float32: products in float32 even where the hardware has bfloat16.
        total: adds a tensor over all processes.
        agree: true everywhere when it was true anywhere.
    """

    device: torch.device
    rank: int = 0
    world: int = 1
    workers: int = 1
    float32: bool = False
    total: Callable[[Tensor], Tensor] = lambda x: x
    agree: Callable[[bool], bool] = bool

    def autocast(self) -> AbstractContextManager[object]:
        """bfloat16 products where the hardware has them, else float32; attention on a CPU: `Batch.attend`."""
        enabled = not self.float32 and has_bfloat16(self.device)
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)


def optimizer_of(model: TrainedLanguageModel, settings: RunSettings, mctp_rate: float) -> AdamW:
    """AdamW over all trained weights; those of MCTP modules learn `mctp_rate` times as fast."""
    groups: list[tuple[Sequence[nn.Parameter], float]] = [(model.backbone_parameters(), 1.0)]
    groups.append((model.mctp_parameters(), mctp_rate))
    return adamw(groups, settings, fused=True)


def muon_of(model: TrainedLanguageModel, settings: RunSettings, mctp_rate: float, parts: int) -> list[Optimizer]:
    """AdamW over embeddings, head, norms and biases; Muon over all other matrices that train, in `parts` of like work.

    Matrices learn `_MUON_RATE` times as fast, their updates scaled to the size of AdamW's.
    """
    inner = {
        id(parameter)
        for module in (model.model.layers, model.mtp_projs)
        for parameter in module.parameters()
        if parameter.dim() == 2 and parameter.requires_grad
    }
    levels = ((model.backbone_parameters(), 1.0), (model.mctp_parameters(), mctp_rate))
    rest = [([p for p in parameters if id(p) not in inner], rate) for parameters, rate in levels]
    optimizers: list[Optimizer] = [adamw(rest, settings, fused=True)]
    # Of each shape every part gets its share, so that their steps take as long.
    matrices = [(p, rate * _MUON_RATE) for parameters, rate in levels for p in parameters if id(p) in inner]
    for part in range(min(parts, len(matrices))):
        groups: dict[float, list[nn.Parameter]] = {}
        for parameter, rate in matrices[part::parts]:
            groups.setdefault(rate, []).append(parameter)
        optimizers.append(
            Muon(
                [{"params": members, "multiplier": rate} for rate, members in groups.items()],
                weight_decay=settings.weight_decay,
            )
        )
    return optimizers


def train(
    run: Run,
    model: TrainedLanguageModel,
    optimizers: Sequence[Optimizer],
    stream: BatchStream,
    held_out: Sequence[Batch],
    audio_from: int,
    accumulation: int,
    place: Place,
    token_corruption: float = 0.0,
) -> None:
    """Run all steps that are left.

    Args:
        held_out: what `score` measures at each evaluation.
        audio_from: the first audio id, to score text and audio apart.
        accumulation: packs of one step and process.
        token_corruption: share of the speech codes that are replaced where they are read (`corrupt_tokens`).
    """
    model.train()
    with workers(place.workers) as each:
        for step in run:
            batches = [next(stream) for _ in range(accumulation)]
            if token_corruption:
                draw = step_generator(run.settings.seed, step, place.rank)
                batches = [corrupt_tokens(batch, token_corruption, audio_from, draw) for batch in batches]
            rows = torch.tensor([sum(b.rows for b in batches), sum(b.trained_tokens for b in batches)])
            # A process alone counts without its device, which would have to finish its work first.
            read, trained = (place.total(rows.to(place.device)) if place.world > 1 else rows).tolist()
            sums = _accumulate_gradients(model, batches, trained, place, each)
            clip(model, run.settings)
            list(each(lambda optimizer: optimizer.step(), optimizers))
            model.zero_grad(set_to_none=True)
            run.log(tokens=read, **_loss_parts(place.total(sums) / trained, model.trains_backbone))
            if run.evaluation_due and held_out:
                run.record("held_out", score(model, held_out, audio_from, place, each))


def _accumulate_gradients(
    model: TrainedLanguageModel, batches: Sequence[Batch], trained: int, place: Place, each: Each
) -> Tensor:
    """Add the gradients of the objective per trained token of the whole step; returns summed losses [1 + K]."""
    if place.workers == 1:
        sums = torch.zeros(1 + model.config.mctp_modules, device=place.device)
        for batch in batches:
            with place.autocast():
                losses: LevelLosses = model(batch.to(place.device, 1 + model.config.mctp_modules))
            loss = losses.total(trained, model.trains_backbone)
            (loss * place.world).backward()  # processes are averaged; `trained` counts all of them
            sums += losses.sums.detach()
        return sums

    def loss_of(batch: Batch) -> tuple[Tensor, Tensor]:
        with place.autocast():
            losses: LevelLosses = model(batch)
        return losses.total(trained, model.trains_backbone), losses.sums

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return add_gradients(each, parameters, loss_of, batches)


def held_out_batches(tokens: TokenSet, count: int, length: int, seed: int) -> list[Batch]:
    """A fixed choice of `count` samples, all of them when there are fewer, that fit into `length` tokens."""
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = [index for index in order if tokens.lengths[index] <= length][:count]
    return [pack([tokens[index] for index in part]) for part in tokens.packs(chosen, length)]


def score(
    model: TrainedLanguageModel, batches: Sequence[Batch], audio_from: int, place: Place, each: Each = map
) -> dict[str, float]:
    """Loss and greedy token accuracy (teacher-forced) of the backbone and of each MCTP module.

    Args:
        each: how to run a function over batches.
    """
    levels = 1 + model.config.mctp_modules
    sums, right, counts = (torch.zeros(levels, dtype=torch.float64) for _ in range(3))
    parts = {"text": [0, 0], "audio": [0, 0]}

    def losses_of(batch: Batch) -> LevelLosses:
        with torch.no_grad(), place.autocast():
            return model(batch.to(place.device, levels), score=True)

    model.eval()
    for batch, losses in zip(batches, each(losses_of, batches), strict=True):
        sums += losses.sums.double().cpu()
        for level, found in enumerate(losses.right):
            right[level] += int(found.sum())
            counts[level] += len(found)
        labels = batch.labels_of(0)
        wanted, hit = labels[labels >= 0], losses.right[0].cpu()
        for name, inside in (("text", wanted < audio_from), ("audio", wanted >= audio_from)):
            parts[name][0] += int(hit[inside].sum())
            parts[name][1] += int(inside.sum())
    model.train()
    counts.clamp_(min=1)
    loss, accuracy = (sums / counts).tolist(), (right / counts).tolist()
    values = {"loss": loss[0], "accuracy": accuracy[0]}
    values |= {f"accuracy_{name}": hit / max(1, seen) for name, (hit, seen) in parts.items()}
    values |= {f"loss_mctp_{k}": loss[k] for k in range(1, levels)}
    return values | {f"accuracy_mctp_{k}": accuracy[k] for k in range(1, levels)}


def _loss_parts(per_token: Tensor, backbone: bool) -> dict[str, Tensor]:
    """The objective and its parts, for the log."""
    modules = len(per_token) - 1
    parts = {"loss_backbone": per_token[0]} if backbone else {}
    if modules:
        parts |= {"loss_mctp": per_token[1:].mean(), "loss_mctp_1": per_token[1], f"loss_mctp_{modules}": per_token[-1]}
    objective = [parts[name] for name in ("loss_backbone", "loss_mctp") if name in parts]
    return {"loss": torch.stack(objective).sum(), **parts}
