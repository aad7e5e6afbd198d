"""Trains the flow: conditional flow matching from tokens to mel of the output voice (docs/audio.md 2.4)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from training.ahead import in_threads
from training.audio.decoder_clips import DecoderClips
from training.audio.flow_windows import FEWEST_TOKENS, FlowBatch, FlowWindows
from training.audio.speech_codes import SpeechCodes
from training.device import autocast, pick_device
from training.files import whole_file
from training.limits import check_settings
from training.run import Run, RunSettings, adamw, clip, set_seeds, step_generator
from training.workers import Each, add_gradients, worker_count, workers
from vita_audio.checkpoint.configs import FlowConfig
from vita_audio.models.flow import Flow

EXPORT = "flow.pt"  # state dict in a training's folder


@dataclass(frozen=True, slots=True)
class FlowTraining:
    """How the flow is trained.

    Attributes:
        batch: windows of a step.
        window_tokens: longest window; a served one has 30 to 39 tokens of context and 20 or 21 new ones.
        output_voice: the voice it speaks with.
        mean_weight: of the squared error of mu, which gives the estimator a first guess (0: mu learns through it only).
        average: decay of the moving average of the weights, which is what is exported.
        evaluation_steps: Euler steps of the samples that are compared with held-out speech.
        workers: parts of a batch computed at once on a CPU; 0: one for each core.
        device: auto, cpu, cuda or cuda:N.
    """

    model: FlowConfig
    run: RunSettings
    batch: int = 16
    window_tokens: int = 70
    output_voice: str = "slt"
    mean_weight: float = 0.1
    average: float = 0.999
    evaluation_steps: int = 4
    held_out_clips: int = 32
    workers: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        """Raises TrainingError naming every value that is out of its range."""
        whole = {"batch": 1, "window_tokens": FEWEST_TOKENS, "evaluation_steps": 1, "held_out_clips": 1, "workers": 0}
        check_settings(self, whole, ("average",), ("mean_weight",))


def condition(model: Flow, batch: FlowBatch) -> Tensor:
    """mu of windows that have a frame map each: [B, mels, F] (`Flow.condition` takes one map for all)."""
    states = model.encoder_proj(model.encode(batch.tokens)).transpose(1, 2)  # [B, mels, N]
    owner = batch.frame_token[:, None].expand(-1, states.shape[1], -1)
    return model.length_regulator.model(states.gather(2, owner))


@dataclass(frozen=True, slots=True)
class FlowDraw:
    """What chance decides for the windows of a batch.

    Attributes:
        noise: [B, mels, F], z.
        t: [B], as dense as the sampling grid.
        given: [B], 0 where tokens, speaker and condition are withheld together.
    """

    noise: Tensor
    t: Tensor
    given: Tensor

    @staticmethod
    def of(batch: FlowBatch, config: FlowConfig, draw: torch.Generator) -> FlowDraw:
        rows, device = batch.mel.shape[0], batch.mel.device
        noise = torch.randn(batch.mel.shape, generator=draw, device=device)
        t = 1 - torch.cos(math.pi / 2 * torch.rand(rows, generator=draw, device=device))
        given = (torch.rand(rows, generator=draw, device=device) >= config.training_cfg_rate).float()
        return FlowDraw(noise, t, given)

    def rows(self, span: slice) -> FlowDraw:
        """Those of some of the windows."""
        return FlowDraw(self.noise[span], self.t[span], self.given[span])


def flow_errors(model: Flow, batch: FlowBatch, drawn: FlowDraw) -> Tensor:
    """Summed errors [2]: of the flow over the frames that are not given, and of mu over all.

    y = (1 - (1 - s) t) z + t x1 is pushed along u = x1 - (1 - s) z; tokens, speaker and condition are withheld together
    from `training_cfg_rate` of the windows, so that guidance has something to compare with.
    """
    config, mel, device = model.config, batch.mel, batch.mel.device
    with autocast(device):
        mu = condition(model, batch).float()
    t, given = drawn.t[:, None, None], drawn.given[:, None, None]
    y = (1 - (1 - config.sigma_min) * t) * drawn.noise + t * mel
    u = mel - (1 - config.sigma_min) * drawn.noise
    cond = mel * batch.known[:, None]
    spks = model.speaker().expand(mel.shape[0], -1) * given[:, :, 0]
    with autocast(device):
        velocity = model.decoder.estimator(y, mu * given, drawn.t, spks, cond * given).float()
    error = (velocity - u).square().mean(1) * ~batch.known  # [B, F]
    return torch.stack((error.sum(), (mu - mel).square().mean(1).sum()))


def error_counts(batch: FlowBatch) -> Tensor:
    """Frames that the errors of `flow_errors` are summed over [2], at least one each."""
    new = (~batch.known).sum()
    return torch.stack((new, torch.full_like(new, batch.known.numel()))).clamp(min=1)


def train_flow(
    config: FlowTraining, data: Path, speech_tokenizer: Path, folder: Path, start: Mapping[str, Tensor] | None = None
) -> Path:
    """Train on the output voice of `data/speech.jsonl` and the codes of a tokenizer in the released layout.

    Args:
        start: weights of a finished flow of the same sizes to go on with; None: from nothing.

    Returns:
        The state dict file, float16.

    Raises:
        TrainingError: faulty data, settings that do not fit the snapshots, a full disk.
        Stopped: asked to stop; everything is saved.
    """
    device = pick_device(config.device)
    clips = DecoderClips(data, config.output_voice, device)
    held_out_clips = clips.test[: config.held_out_clips]
    paths = [data / clips.clips[index].audio for index in range(len(clips.clips))]
    codes = SpeechCodes(speech_tokenizer, folder / "codes", device)
    codes.make(paths[index] for index in (*clips.train, *held_out_clips))
    windows, held_out = (
        FlowWindows(
            clips,
            indices,
            [np.array(codes[paths[index]], np.int64) for index in indices],
            config.model.block_size,
            config.window_tokens,
            config.batch,
            config.run.seed,
        )
        for indices in (clips.train, held_out_clips)
    )
    set_seeds(config.run.seed)
    model = Flow(config.model)
    if start is not None:
        model.load_state_dict(start)
    else:
        mean = clips.mean_mel().cpu()
        with torch.no_grad():  # both outputs start at the mean, so that training does not begin with finding it
            for last in (model.decoder.estimator.final_proj, model.length_regulator.model[-1]):
                cast(nn.Conv1d, last).bias.copy_(mean)  # type: ignore[union-attr]
    model.to(device)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.average))
    averaged = cast(Flow, average.module)
    optimizer = adamw([(model.parameters(), 1.0)], config.run, fused=True)
    run = Run(
        folder,
        config.run,
        {"model": model, "average": average, "optimizer": optimizer},
        [optimizer],
        identity={
            "model": config.model,
            "batch": config.batch,
            "data": clips.clips.fingerprint,
            "fresh": start is None,
        },
    )
    ahead = in_threads(windows.__getitem__, count(run.step), ahead=int(device.type != "cpu"), threads=1)
    parts = worker_count(config.workers, device, config.batch)
    with workers(parts) as each:
        for step in run:
            seed = int(step_generator(config.run.seed, step, rank=1).integers(2**62))
            batch = next(ahead)
            drawn = FlowDraw.of(batch, config.model, torch.Generator(device).manual_seed(seed))
            optimizer.zero_grad(set_to_none=True)
            losses = add_flow_gradients(model, batch, drawn, config, parts, each)
            clip(model, config.run)
            optimizer.step()
            average.update_parameters(model)
            total = losses["flow"] + config.mean_weight * losses["mean"]
            run.log(loss=total, tokens=batch.tokens.numel(), **{f"loss_{name}": loss for name, loss in losses.items()})
            if run.evaluation_due:
                run.record("held_out", _evaluate(averaged, held_out, config))
    export = folder / EXPORT
    with whole_file(export) as path:
        torch.save({key: value.half().cpu() for key, value in averaged.state_dict().items()}, path)
    return export


def add_flow_gradients(
    model: Flow, batch: FlowBatch, drawn: FlowDraw, config: FlowTraining, parts: int, each: Each
) -> dict[str, Tensor]:
    """Gradients of the batch's loss, computed in `parts` of its windows; returns its losses by name."""
    frames = error_counts(batch)

    def loss_of(rows: slice) -> tuple[Tensor, Tensor]:
        errors = flow_errors(model, batch.rows(rows), drawn.rows(rows)) / frames
        return errors[0] + config.mean_weight * errors[1], errors

    windows = batch.tokens.shape[0]
    size = math.ceil(windows / parts)
    rows = [slice(first, first + size) for first in range(0, windows, size)]
    flow, mean = add_gradients(each, list(model.parameters()), loss_of, rows)
    return {"flow": flow, "mean": mean}


@torch.no_grad()
def _evaluate(model: Flow, windows: FlowWindows, config: FlowTraining) -> dict[str, float]:
    """Held-out windows from the clips' start: losses, and how far mels sampled with few steps are from true ones."""
    draw = torch.Generator(windows.clips.device).manual_seed(0)
    values: dict[str, list[float]] = {}
    for tokens in np.quantile(windows.lengths, (0.1, 0.5), method="lower").tolist():
        rows = np.flatnonzero(windows.lengths >= tokens)[: config.held_out_clips].tolist()
        tokens = min(tokens, config.window_tokens)
        batch = windows.make(rows, [0] * len(rows), tokens, [0.0] * len(rows))
        errors = flow_errors(model, batch, FlowDraw.of(batch, config.model, draw)) / error_counts(batch)
        for name, loss in zip(("flow", "mean"), errors.tolist(), strict=True):
            values.setdefault(f"loss_{name}", []).append(loss)
        mu = condition(model, batch)
        noise = torch.randn(mu.shape, generator=draw, device=mu.device)
        made = model.sample(mu, torch.zeros_like(mu), noise, config.evaluation_steps)
        values.setdefault("mel_error", []).append(float((made - batch.mel).abs().mean()))
        values.setdefault("mean_error", []).append(float((mu - batch.mel).abs().mean()))
    return {name: sum(found) / len(found) for name, found in values.items()}
