"""Trains the vocoder: f0, spectra, and from `adversarial_after` on against discriminators (docs/audio.md 3)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import remove_parametrizations
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from training.ahead import in_threads
from training.audio.decoder_clips import DecoderClips
from training.audio.discriminators import Discriminators, adversarial_loss, discriminator_loss, feature_loss
from training.audio.pitch import fundamental_hz
from training.audio.spectral import SpectralLoss
from training.device import autocast, pick_device
from training.files import whole_file
from training.limits import check_settings
from training.run import Run, RunSettings, Shuffle, adamw, clip, set_seeds, step_generator
from vita_audio.checkpoint.audio_decoder import split_weight_norm
from vita_audio.checkpoint.configs import VocoderConfig
from vita_audio.contract.rates import MEL_HOP_SAMPLES
from vita_audio.decoding.schedule import F0_CONTEXT_FRAMES
from vita_audio.models.vocoder import Vocoder

EXPORT = "vocoder.pt"  # state dict with weight norm folded, in a training's folder
_F0_GAIN_HZ, _F0_START_HZ = 30.0, 180.0  # so that the predictor's layers learn at their usual rate
_F0_UNIT_HZ = 100.0  # of the f0 loss
_BETAS = (0.8, 0.99)  # usual for adversarial vocoders


@dataclass(frozen=True, slots=True)
class VocoderTraining:
    """How the vocoder is trained.

    Attributes:
        batch, segment_frames: segments of a step and their mel frames.
        clips: most clips to train on; one voice needs no more.
        output_voice: the voice it speaks with.
        own_f0_after: share of the steps after which the source follows the predicted f0, as served, not the true one.
        adversarial_after: share of the steps after which the discriminators take part; 1 never.
        discriminator_width: channels of their first layers.
        mel_weight, stft_weight, f0_weight, adversarial_weight, feature_weight: of the losses.
        average: decay of the moving average of the weights, which is what is exported.
        device: auto, cpu, cuda or cuda:N.
    """

    model: VocoderConfig
    run: RunSettings
    batch: int = 16
    segment_frames: int = 32
    clips: int = 4_000
    output_voice: str = "slt"
    own_f0_after: float = 0.1
    adversarial_after: float = 0.3
    discriminator_width: int = 16
    mel_weight: float = 15.0
    stft_weight: float = 2.0
    f0_weight: float = 1.0
    adversarial_weight: float = 1.0
    feature_weight: float = 2.0
    average: float = 0.999
    held_out_clips: int = 16
    device: str = "auto"

    def __post_init__(self) -> None:
        """Raises TrainingError naming every value that is out of its range."""
        check_settings(
            self,
            {"batch": 1, "segment_frames": 8, "clips": 1, "discriminator_width": 1, "held_out_clips": 1},
            ("own_f0_after", "adversarial_after", "average"),
            ("mel_weight", "stft_weight", "f0_weight", "adversarial_weight", "feature_weight"),
        )


@dataclass(frozen=True, slots=True)
class Segments:
    """Pieces of speech: wave [B, 256 F]; mel [B, mels, F + 10] and f0 [B, F + 10], five frames more on either side."""

    wave: Tensor
    mel: Tensor
    f0: Tensor


class SegmentBatches:
    """Random segments of the training clips; the batch of a step is a function of (seed, step)."""

    def __init__(
        self,
        clips: DecoderClips,
        indices: list[int],
        f0: dict[int, NDArray[np.float32]],
        batch: int,
        frames: int,
        seed: int,
    ) -> None:
        self.clips, self.indices, self.f0 = clips, indices, f0
        self.batch, self.frames, self.seed = batch, frames, seed
        self._shuffle = Shuffle(len(indices), seed)

    def __getitem__(self, step: int) -> Segments:
        rng = step_generator(self.seed, step)
        indices = [self.indices[self._shuffle[step * self.batch + row]] for row in range(self.batch)]
        # A clip shorter than the segment is followed by silence.
        firsts = [int(rng.integers(0, max(1, self.clips.frames(index) - self.frames + 1))) for index in indices]
        return self.make(indices, firsts, self.frames)

    def make(self, indices: list[int], firsts: list[int], frames: int) -> Segments:
        """Segments of `frames` frames from these first frames of these clips."""
        edge = F0_CONTEXT_FRAMES
        f0 = np.zeros((len(indices), frames + 2 * edge), np.float32)
        for row, index, first in zip(f0, indices, firsts, strict=True):
            known = self.f0[index]
            low, high = max(0, first - edge), min(len(known), first + frames + edge)
            row[low - (first - edge) : high - (first - edge)] = known[low:high]
        return Segments(
            wave=self.clips.waves(indices, firsts, frames),
            mel=self.clips.mels(indices, [first - edge for first in firsts], frames + 2 * edge),
            f0=torch.from_numpy(f0).to(self.clips.device),
        )


def vocode(model: Vocoder, segments: Segments, true_f0: bool, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Wave [B, 256 F] of segments, from the true or the predicted f0, and the predicted f0 [B, F + 10] in Hz."""
    config, inner = model.config, slice(F0_CONTEXT_FRAMES, -F0_CONTEXT_FRAMES)
    predicted = model.f0(segments.mel)
    f0 = (segments.f0 if true_f0 else predicted.detach())[:, inner]
    harmonics, device = config.nb_harmonics + 1, f0.device
    phases = math.pi * (2 * torch.rand(harmonics, generator=draw, device=device) - 1)
    phases[0] = 0.0
    noise = torch.randn((len(f0), harmonics, MEL_HOP_SAMPLES * f0.shape[1]), generator=draw, device=device)
    return model(segments.mel[:, :, inner], model.source(f0, phases, noise)), predicted


def train_vocoder(config: VocoderTraining, data: Path, folder: Path, start: Mapping[str, Tensor] | None = None) -> Path:
    """Train on the output voice of `data/speech.jsonl`, or go on from the last snapshot in `folder`.

    Args:
        start: weights (weight norm folded) of a finished vocoder of the same sizes to go on with; None: from nothing.

    Returns:
        The state dict file, float16, weight norm folded.

    Raises:
        TrainingError: faulty data, settings that do not fit the snapshots, a full disk.
        Stopped: asked to stop; everything is saved.
    """
    device = pick_device(config.device)
    clips = DecoderClips(data, config.output_voice, device)
    train, held_out = clips.train[:: -(-len(clips.train) // config.clips)], clips.test[: config.held_out_clips]
    f0 = _true_f0(clips, [*train, *held_out], folder)
    batches = SegmentBatches(clips, train, f0, config.batch, config.segment_frames, config.run.seed)
    set_seeds(config.run.seed)
    fresh = _fresh(config.model)
    if start is not None:
        fresh.load_state_dict(start)
    model = weight_normed(fresh).to(device)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.average))
    averaged = cast(Vocoder, average.module)
    discriminators, spectral = Discriminators(config.discriminator_width).to(device), SpectralLoss().to(device)
    optimizer = adamw([(model.parameters(), 1.0)], config.run, betas=_BETAS)
    opponent = adamw([(discriminators.parameters(), 1.0)], config.run, betas=_BETAS)
    own_f0 = round(config.own_f0_after * config.run.steps)
    adversarial = round(config.adversarial_after * config.run.steps)
    run = Run(
        folder,
        config.run,
        {
            "model": model,
            "average": average,
            "discriminators": discriminators,
            "optimizer": optimizer,
            "opponent": opponent,
        },
        [optimizer, opponent],
        identity={
            "model": config.model,
            "batch": config.batch,
            "data": clips.clips.fingerprint,
            "fresh": start is None,
        },
    )
    ahead = in_threads(batches.__getitem__, count(run.step), ahead=int(device.type != "cpu"), threads=1)
    for step in run:
        draw = torch.Generator(device).manual_seed(int(step_generator(config.run.seed, step, rank=1).integers(2**62)))
        segments = next(ahead)
        wave, predicted = vocode(model, segments, step < own_f0, draw)
        losses = spectral(wave, segments.wave)
        losses["f0"] = (predicted - segments.f0).abs().mean() / _F0_UNIT_HZ
        total = config.mel_weight * losses["mel"] + config.stft_weight * losses["stft"]
        total = total + config.f0_weight * losses["f0"]
        if step >= adversarial:
            with autocast(device):
                true = discriminators(segments.wave)
                losses["discriminator"] = discriminator_loss(true, discriminators(wave.detach()))
            opponent.zero_grad(set_to_none=True)
            losses["discriminator"].backward()
            clip(discriminators, config.run)
            opponent.step()
            discriminators.requires_grad_(False)  # the vocoder's gradients pass through them, not into them
            with autocast(device), torch.no_grad():
                true = discriminators(segments.wave)
            with autocast(device):
                made = discriminators(wave)
                losses["adversarial"], losses["feature"] = adversarial_loss(made), feature_loss(true, made)
            discriminators.requires_grad_(True)
            total = total + config.adversarial_weight * losses["adversarial"]
            total = total + config.feature_weight * losses["feature"]
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        clip(model, config.run)
        optimizer.step()
        average.update_parameters(model)
        run.log(
            loss=total, tokens=len(wave) * wave.shape[1] / 1764, **{f"loss_{k}": loss for k, loss in losses.items()}
        )
        if run.evaluation_due:
            run.record("held_out", _evaluate(averaged, batches, held_out, spectral))
    export = folder / EXPORT
    tensors = folded(averaged).state_dict()
    with whole_file(export) as path:
        torch.save({key: value.half().cpu() for key, value in tensors.items()}, path)
    return export


def weight_normed(model: Vocoder) -> Vocoder:
    """Give the convolutions that are stored with weight norm a length and a direction to train (docs/audio.md 3)."""
    for module in _normed(model, split_weight_norm(model.state_dict())):
        weight_norm(module)
    return model


def folded(model: Vocoder) -> Vocoder:
    """A copy of a `weight_normed` vocoder with plain weights."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        if hasattr(module, "parametrizations"):
            remove_parametrizations(module, "weight")
    return model


def _normed(model: nn.Module, stored: dict[str, Tensor]) -> Iterator[nn.Module]:
    for key in stored:
        if key.endswith(".weight_g"):
            yield model.get_submodule(key.removesuffix(".weight_g"))


def _fresh(config: VocoderConfig) -> Vocoder:
    """A vocoder whose f0 starts within the range of a voice."""
    model = Vocoder(config)
    with torch.no_grad():
        model.f0_predictor.classifier.weight.mul_(_F0_GAIN_HZ)
        model.f0_predictor.classifier.bias.fill_(_F0_START_HZ)
    return model


def _true_f0(clips: DecoderClips, indices: list[int], folder: Path) -> dict[int, NDArray[np.float32]]:
    """f0 of each mel frame of these clips, kept in `folder`."""
    path = folder / f"f0_{clips.clips.fingerprint}.npz"
    if path.exists():
        with np.load(path) as stored:
            known = {int(name): stored[name] for name in stored.files}
        if known.keys() >= set(indices):
            return known
    waves = (clips.clips.samples(index) / np.float32(32768) for index in indices)
    made = track(in_threads(fundamental_hz, waves), f"f0 of {len(indices)} clips", len(indices), transient=True)
    found = dict(zip(indices, made, strict=True))
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **{str(index): f0 for index, f0 in found.items()})  # type: ignore[arg-type]
    return found


@torch.no_grad()
def _evaluate(model: Vocoder, batches: SegmentBatches, held_out: list[int], spectral: SpectralLoss) -> dict[str, float]:
    """Held-out clips with the predicted f0, as served: spectral losses, error of f0 and of voicing."""
    draw = torch.Generator(batches.clips.device).manual_seed(0)
    frames = min(batches.clips.frames(index) for index in held_out)
    segments = batches.make(held_out, [0] * len(held_out), frames)
    wave, predicted = vocode(model, segments, true_f0=False, draw=draw)
    losses = spectral(wave, segments.wave)
    voiced, heard = segments.f0 > 0, predicted > model.config.nsf_voiced_threshold
    both = voiced & heard
    f0_error = ((predicted - segments.f0).abs() * both).sum() / both.sum().clamp(min=1)
    return {
        **{f"loss_{name}": float(loss) for name, loss in losses.items()},
        "f0_error_hz": float(f0_error),
        "voicing_error": float((voiced != heard).float().mean()),
    }
