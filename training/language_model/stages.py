"""The paper's four stages, each from the weights of the one before (paper section 4, docs/audio.md 8)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer

from training.device import pick_device
from training.errors import TrainingError
from training.files import whole_folder
from training.language_model.batch_stream import BatchStream
from training.language_model.curriculum import Curriculum
from training.language_model.forward import TrainedLanguageModel
from training.language_model.fused import fuse
from training.language_model.initialise import add_modules, random_weights, with_modules
from training.language_model.loop import Place, held_out_batches, muon_of, optimizer_of, train
from training.language_model.prepare import TEST, TOKENIZER_FILES, TRAIN
from training.language_model.settings import LanguageModelTraining
from training.language_model.token_set import TokenSet
from training.run import Run, set_seeds
from training.workers import worker_count
from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.checkpoint.language_model import load_language_model, write_language_model
from vita_audio.contract.limits import DEFAULT_REPETITION_PENALTY
from vita_audio.contract.modes import NAMED_MODES
from vita_audio.text.normalization import NONE
from vita_audio.text.tokenizer import TextTokenizer
from vita_audio.text.vocabulary import Vocabulary

EXPORT = "language_model"  # folder of the released layout below a stage's folder


@dataclass(frozen=True, slots=True)
class Stage:
    """What sets a stage apart. `modules`: MCTP modules, None for all of the finished model."""

    title: str
    modules: int | None
    trains_backbone: bool


STAGES = {
    1: Stage("audio-text alignment", 0, trains_backbone=True),
    2: Stage("one MCTP module", 1, trains_backbone=False),
    3: Stage("all MCTP modules", None, trains_backbone=False),
    4: Stage("supervised fine-tuning", None, trains_backbone=True),
}


def train_stage(config: LanguageModelTraining, number: int, tokens: Path, previous: Path | None, folder: Path) -> Path:
    """Run one stage, or go on from its last snapshot.

    Args:
        tokens: what `prepare_tokens` returned.
        previous: what the stage before returned; None for stage 1.

    Returns:
        The folder of the trained language model in the released layout (float32), served with every mode its
        modules allow.

    Raises:
        TrainingError: missing parts, settings that do not fit the snapshots, a loss that is not a number, a full disk.
        Stopped: asked to stop; everything is saved.
    """
    stage, settings = STAGES[number], config.stages[number - 1]
    device = pick_device(config.device)
    tokenizer = TextTokenizer(tokens / "tokenizer.json")
    vocabulary = tokenizer.vocabulary
    modules = config.model.mctp_modules if stage.modules is None else min(stage.modules, config.model.mctp_modules)
    backbone = config.model.backbone(vocab_size=-(-vocabulary.tokens // 8) * 8)  # padded as the released ones
    sizes = with_modules(backbone, modules)

    set_seeds(settings.run.seed)
    model = TrainedLanguageModel(sizes, stage.trains_backbone).to(device)
    if config.compile:
        fuse(model)
    packs = Curriculum(TokenSet.load(tokens / TRAIN), settings.length, settings.run.seed, settings.phases)
    stream = BatchStream(packs, ahead=0 if device.type == "cpu" else 2 * settings.accumulation)
    held_out = held_out_batches(TokenSet.load(tokens / TEST), config.held_out_samples, settings.length, seed=0)
    if previous is None:
        start = random_weights(sizes, config.seed, config.local_layers)
    else:
        found, tensors = load_language_model(previous)
        if with_modules(found, 0) != backbone:
            raise TrainingError(f"{previous}: has the sizes {asdict(found)}, not those of the configuration {sizes}")
        start = add_modules(found, tensors, modules, config.seed)[1]
    model.load_state_dict(start)
    place = Place(device, workers=worker_count(config.workers, device, settings.accumulation))
    mctp_rate = config.mctp_rate if number == 4 else 1.0
    optimizers: list[Optimizer] = [optimizer_of(model, settings.run, mctp_rate)]
    if config.optimizer == "muon":
        optimizers = muon_of(model, settings.run, mctp_rate, place.workers)
    run = Run(
        folder,
        settings.run,
        {"model": model, "stream": stream, **{f"optimizer_{i}": o for i, o in enumerate(optimizers)}},
        optimizers,
        identity={
            "stage": number,
            "model": asdict(sizes),
            "length": settings.length,
            "accumulation": settings.accumulation,
            "mixture": [(packs, dict(mixture)) for packs, mixture in settings.phases],
            "optimizer": config.optimizer,
            "token_corruption": settings.token_corruption,
            "tokens": packs.tokens.fingerprint,
        },
    )
    train(
        run, model, optimizers, stream, held_out, vocabulary.audio_offset, settings.accumulation, place,
        settings.token_corruption,
    )  # fmt: skip

    export = folder / EXPORT
    pattern = config.trained_mode.pattern if modules == config.model.mctp_modules else NAMED_MODES["vanilla"]
    weights = {key: value.detach().float().cpu() for key, value in model.state_dict().items()}
    if number == 4 and config.blend < 1:
        weights = {key: torch.lerp(start[key].float(), value, config.blend) for key, value in weights.items()}
    write_released(export, sizes, vocabulary, weights, pattern, tokens)
    return export


def write_released(
    folder: Path,
    config: LanguageModelConfig,
    vocabulary: Vocabulary,
    tensors: Mapping[str, Tensor],
    pattern: Sequence[int],
    tokenizer: Path,
    samples: bool = True,
    repetition_penalty: float = DEFAULT_REPETITION_PENALTY,
    text_normalization: str = NONE,
) -> None:
    """A `language_model` folder in the released layout, whole or not there; `tokenizer`: where its files come from.

    `samples`: whether it reads text aloud with sampling by default. `repetition_penalty`: of requests that send none.
    `text_normalization`: how text is written before it is read.

    Raises:
        TrainingError: it cannot be written; what was there before stays.
    """
    with whole_folder(folder) as place:
        write_language_model(
            place, config, vocabulary, tensors, pattern, samples, repetition_penalty, text_normalization
        )
        for name in TOKENIZER_FILES:
            if (tokenizer / name).exists():
                shutil.copyfile(tokenizer / name, place / name)


def stored_as(tensors: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Weights in the precision of the export. Raises TrainingError when a weight overflows it."""
    kind = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}[dtype]
    converted = {key: value.to(kind) for key, value in tensors.items()}
    if broken := [key for key, value in converted.items() if not value.isfinite().all()]:
        raise TrainingError(f"{len(broken)} weights do not fit {dtype} ({', '.join(broken[:3])}); export as bfloat16")
    return converted
