"""Trains the speech tokenizer: recognition and sound, first from states, then from their codes (docs/audio.md 1).

The encoder starts without a codebook. After `quantize_after` of the steps the codes are placed by k-means on its
states and follow them as moving averages; from then on both heads read codes only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from training.ahead import in_threads
from training.audio.augment import Augmentation, augment
from training.audio.clips import pack_clips
from training.audio.mel import SpeechFeatures
from training.audio.quantizer import CodebookAverages, QuantizerSettings, perplexity, straight_through
from training.audio.tokenizer_batches import SpeechBatch, SpeechBatches
from training.audio.tokenizer_heads import (
    CTC_STEPS_PER_TOKEN,
    MelHead,
    RecognitionHead,
    ctc_loss,
    letter_ids,
    read_letters,
)
from training.data.answers import edit_distance
from training.device import autocast, pick_device
from training.errors import TrainingError
from training.files import whole_folder
from training.limits import check_settings
from training.run import Run, RunSettings, adamw, clip, set_seeds, step_generator
from vita_audio.checkpoint.configs import SpeechTokenizerConfig
from vita_audio.checkpoint.random_weights.audio import sinusoids
from vita_audio.checkpoint.speech_tokenizer import load_speech_tokenizer, write_speech_tokenizer
from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ
from vita_audio.models.speech_tokenizer import SpeechTokenizer

EXPORT = "speech_tokenizer"  # folder of the released layout below a training's folder


@dataclass(frozen=True, slots=True)
class SpeechTokenizerTraining:
    """How the speech tokenizer is trained.

    Attributes:
        batch: utterances of a step.
        output_voice: the voice that is spoken back; the codes carry its sound, of other voices their text only.
        quantize_after: share of the steps that train the encoder before it has codes.
        start_states: encoder states that the codes are placed on.
        restart_until: share of the steps after which dead codes stay where they are.
        head_width: width of the heads that are dropped at export.
        ctc_weight, mel_weight, commitment_weight: of the losses (per letter, mean square of features, mean square).
        device: auto, cpu, cuda or cuda:N.
    """

    model: SpeechTokenizerConfig
    run: RunSettings
    batch: int = 16
    output_voice: str = "slt"
    quantize_after: float = 0.3
    start_states: int = 40_000
    restart_until: float = 0.8
    head_width: int = 192
    ctc_weight: float = 1.0
    mel_weight: float = 10.0
    commitment_weight: float = 0.25
    quantizer: QuantizerSettings = field(default_factory=QuantizerSettings)
    augmentation: Augmentation = field(default_factory=Augmentation)
    held_out_clips: int = 64
    device: str = "auto"

    def __post_init__(self) -> None:
        """Raises TrainingError naming every value that is out of its range."""
        check_settings(
            self,
            {"batch": 1, "start_states": 1, "head_width": 1, "held_out_clips": 1},
            ("quantize_after", "restart_until"),
            ("ctc_weight", "mel_weight", "commitment_weight"),
        )
        if self.quantize_after == 1:
            raise TrainingError("quantize_after: 1 leaves no steps for the codebook; take a share below 1")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one batch gave: losses by name, states [m, d_model] and codes [m] of valid tokens, letter scores [B, S, L].

    Codes are empty while there is no codebook.
    """

    losses: dict[str, Tensor]
    states: Tensor
    ids: Tensor
    scores: Tensor


class TokenizerInTraining(nn.Module):
    """The tokenizer with everything that only training needs."""

    def __init__(self, config: SpeechTokenizerTraining) -> None:
        super().__init__()
        sizes = config.model
        self.encoder = SpeechTokenizer(sizes)
        for table in (self.encoder.embed_positions, self.encoder.embed_positions2):
            table.weight.data.copy_(sinusoids(*table.weight.shape))
            table.weight.requires_grad_(False)
        self.encoder.codebook.weight.requires_grad_(False)  # moving averages, not gradients
        self.averages = CodebookAverages(sizes.quantize_vocab_size, sizes.d_model, config.quantizer)
        self.recognition = RecognitionHead(sizes.d_model, config.head_width)
        self.sound = MelHead(sizes.d_model, config.head_width, sizes.num_mel_bins, sizes.frames_per_token)
        self.features = SpeechFeatures(sizes.num_mel_bins)

    def encode(self, heard: Tensor, batch: SpeechBatch) -> Tensor:
        """States of speech, [B, n] -> [B, n / 1280, d_model]."""
        features = self.features(heard, batch.samples)
        with autocast(heard.device):
            return self.encoder.encode(features, batch.valid_frames).float()

    def forward(self, heard: Tensor, batch: SpeechBatch, quantized: bool) -> Outcome:
        """Run a batch; `heard` [B, n] is `batch.wave` or what became of it on its way to the encoder."""
        valid, states = batch.valid_tokens, self.encode(heard, batch)
        inside, codes = valid.bool(), states
        ids = torch.empty(0, dtype=torch.int64, device=heard.device)
        losses: dict[str, Tensor] = {}
        if quantized:
            all_ids = self.encoder.quantize(states.detach())
            codes, distance = straight_through(states, self.encoder.codebook.weight[all_ids])
            losses["commitment"] = distance[inside].mean()
            ids = all_ids[inside]
        with autocast(heard.device):
            scores = self.recognition(codes, valid)
            sound = self.sound(codes, valid)
        losses["ctc"] = ctc_loss(scores, CTC_STEPS_PER_TOKEN * inside.sum(1), batch.texts)
        wanted = self.features(batch.wave, batch.samples)
        frames = valid.repeat_interleave(wanted.shape[2] // valid.shape[1], dim=1) * batch.output[:, None]
        error = (sound.float() - wanted).square().mean(1) * frames  # [B, frames]
        losses["mel"] = error.sum() / frames.sum().clamp(min=1)
        return Outcome(losses, states.detach()[inside], ids, scores)


def train_speech_tokenizer(
    config: SpeechTokenizerTraining, data: Path, folder: Path, start: Path | None = None
) -> Path:
    """Train on `data/speech.jsonl`, or go on from the last snapshot in `folder`.

    Args:
        start: a finished tokenizer in the released layout, of the same sizes, whose encoder goes on; its codes are
            placed anew and mean something else. None: from nothing.

    Returns:
        The folder of the trained tokenizer in the released layout.

    Raises:
        CheckpointError: `start` cannot be read.
        TrainingError: faulty data, settings that do not fit the snapshots, a full disk.
        Stopped: asked to stop; everything is saved.
    """
    device = pick_device(config.device)
    clips = pack_clips(data, INPUT_SAMPLE_RATE_HZ, config.output_voice)
    batches = SpeechBatches(clips, config.batch, config.run.seed, device)
    held_out = clips.of_split("test")
    set_seeds(config.run.seed)
    model = TokenizerInTraining(config).to(device)
    if start is not None:
        model.encoder.load_state_dict(load_speech_tokenizer(start)[1])
    optimizer = adamw([(model.parameters(), 1.0)], config.run)
    weights = {"ctc": config.ctc_weight, "mel": config.mel_weight, "commitment": config.commitment_weight}
    quantize_from = round(config.quantize_after * config.run.steps)
    last_restart = round(config.restart_until * config.run.steps)
    codebook = model.encoder.codebook.weight.data
    run = Run(
        folder,
        config.run,
        {"model": model, "optimizer": optimizer},
        [optimizer],
        identity={
            "model": config.model,
            "batch": config.batch,
            "data": clips.fingerprint,
            "start": quantize_from,
            "fresh": start is None,
        },
    )
    ahead = in_threads(batches.__getitem__, count(run.step), ahead=int(device.type != "cpu"), threads=1)
    for step in run:
        rng = step_generator(config.run.seed, step, rank=1)
        draw = torch.Generator(device).manual_seed(int(rng.integers(2**62)))
        if step == quantize_from:
            model.averages.start(codebook, _states(model, batches, config, rng), draw)
        batch = next(ahead)
        outcome: Outcome = model(_heard(batch, config, rng), batch, quantized=step >= quantize_from)
        total = torch.stack([weights[name] * loss for name, loss in outcome.losses.items()]).sum()
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        clip(model, config.run)
        optimizer.step()
        if step >= quantize_from:
            model.averages.update(codebook, outcome.states, outcome.ids, step < last_restart, draw)
        run.log(loss=total, tokens=len(outcome.states), **{f"loss_{k}": loss for k, loss in outcome.losses.items()})
        if run.evaluation_due:
            run.record("held_out", _evaluate(model, batches, held_out[: config.held_out_clips], step >= quantize_from))
    export = folder / EXPORT
    # Stored and used as float16: codes made from now on come from exactly the weights that are served.
    tensors = {key: value.half().cpu() for key, value in model.encoder.state_dict().items()}
    with whole_folder(export) as place:
        write_speech_tokenizer(place, config.model, tensors)
    return export


def _heard(batch: SpeechBatch, config: SpeechTokenizerTraining, rng: np.random.Generator) -> Tensor:
    """The encoder's input: half of the output clips as they are, since the codes to speak are made from those."""
    clean = torch.from_numpy(rng.random(len(batch.texts)) < 0.5).to(batch.wave.device) & batch.output
    return torch.where(clean[:, None], batch.wave, augment(batch.wave, batch.samples, config.augmentation, rng))


@torch.no_grad()
def _states(
    model: TokenizerInTraining, batches: SpeechBatches, config: SpeechTokenizerTraining, rng: np.random.Generator
) -> Tensor:
    """Encoder states of about `start_states` tokens: [m, d_model]."""
    found: list[Tensor] = []
    step = config.run.steps  # batches that training does not use
    while sum(map(len, found)) < config.start_states:
        batch = batches[step]
        found.append(model.encode(_heard(batch, config, rng), batch)[batch.valid_tokens.bool()])
        step += 1
    return torch.cat(found)[: config.start_states]


@torch.no_grad()
def _evaluate(
    model: TokenizerInTraining, batches: SpeechBatches, indices: list[int], quantized: bool
) -> dict[str, float]:
    """Clean held-out speech: losses, letter error rate of the recognition head, how many codes are in use."""
    sums: dict[str, float] = {}
    ids, errors, letters = [], 0, 0
    for first in range(0, len(indices), batches.batch):
        part = indices[first : first + batches.batch]
        batch = batches.make([[index] for index in part])
        outcome: Outcome = model(batch.wave, batch, quantized)
        ids.append(outcome.ids)
        for name, loss in outcome.losses.items():
            sums[f"loss_{name}"] = sums.get(f"loss_{name}", 0.0) + float(loss) * len(part) / len(indices)
        valid_tokens = batch.valid_tokens.sum(1).int().tolist()
        for row, tokens, text in zip(outcome.scores, valid_tokens, batch.texts, strict=True):
            wanted = letter_ids(text)
            errors += edit_distance(read_letters(row[: CTC_STEPS_PER_TOKEN * tokens]), wanted)
            letters += len(wanted)
    values = {**sums, "letter_error_rate": errors / max(1, letters)}
    if quantized:
        used = torch.cat(ids)
        values["codes_perplexity"] = float(perplexity(used, len(model.encoder.codebook.weight)))
        values["codes_used"] = float(len(used.unique()))
    return values
