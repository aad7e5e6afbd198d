"""Fine-tunes a released checkpoint on a user's JSON lines, as the paper's fourth stage; one or many processes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from training.audio.speech_codes import SpeechCodes
from training.errors import TrainingError
from training.language_model.batch import Batch
from training.language_model.batch_stream import BatchStream
from training.language_model.conversations import Conversation, read_conversations
from training.language_model.distributed import ShardedSnapshots, gathered_weights, place_model, wait
from training.language_model.finetune_settings import FinetuneSettings
from training.language_model.forward import TrainedLanguageModel
from training.language_model.loop import Place, held_out_batches, optimizer_of, train
from training.language_model.prepare import build_samples, describe
from training.language_model.result import LANGUAGE_MODEL, SPEECH_TOKENIZER, write_result
from training.language_model.samples import SampleBuilder
from training.language_model.token_set import PackStream, TokenSet
from training.run import Run, RunSettings, set_seeds
from vita_audio.checkpoint.check import default_pattern
from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.checkpoint.file_records import checkpoint_sha256
from vita_audio.checkpoint.language_model import language_model_shapes, load_language_model
from vita_audio.checkpoint.weight_files import open_folder
from vita_audio.contract.errors import CheckpointError, InvalidRequest
from vita_audio.contract.modes import NAMED_MODES, parse_mode
from vita_audio.text.tokenizer import TextTokenizer


def finetune(settings: FinetuneSettings, place: Place) -> Path:
    """Check everything, train or go on from the last snapshot, write the result.

    Returns:
        `out/checkpoint`, a bundle of the released layout.

    Raises:
        CheckpointError: the checkpoint is incomplete or its parts do not fit.
        TrainingError: faulty data or settings, snapshots of another training, a full disk.
        Stopped: asked to stop; everything is saved.
    """
    place = replace(place, float32=settings.float32)
    console = Console(soft_wrap=True, highlight=False, quiet=place.rank != 0)
    source = settings.checkpoint / LANGUAGE_MODEL
    config = _read_config(source)
    tokenizer = TextTokenizer(source / "tokenizer.json")
    pattern = _pattern(settings, config, source)
    if tokenizer.vocabulary.context_of_audio is not None:
        raise CheckpointError(f"{source}: a Plus checkpoint takes continuous audio, which cannot be trained here")
    if tokenizer.vocabulary.tokens > config.vocab_size:
        raise CheckpointError(
            f"{source}: tokenizer.json has {tokenizer.vocabulary.tokens} tokens, the model {config.vocab_size} rows"
        )

    conversations = read_conversations(settings.data, max_audio_s=settings.max_audio_s)
    trained, held_out = _split(conversations, settings)
    codes = SpeechCodes(settings.checkpoint / SPEECH_TOKENIZER, settings.out / "codes", place.device, place.rank)
    if codes.config.quantize_vocab_size != tokenizer.vocabulary.audio_codes:
        raise CheckpointError(
            f"{settings.checkpoint}: the speech tokenizer has {codes.config.quantize_vocab_size} codes, the language "
            f"model {tokenizer.vocabulary.audio_codes}; take both from one release"
        )
    audios = list(dict.fromkeys(audio for conversation in conversations for audio in conversation.audios))
    codes.make(audios[place.rank :: place.world], console=console)
    wait(place)
    codes.load()
    builder = SampleBuilder(tokenizer, pattern)
    how = (builder, codes, settings.length, settings.data, settings.skip_long)
    tokens = TokenSet.of(*build_samples(trained, *how))
    test, test_tasks = build_samples(held_out, *how)
    scored: list[Batch] = []
    if test:
        scored = held_out_batches(TokenSet.of(test, test_tasks), len(test), settings.length, settings.seed)
    packs = PackStream(tokens, settings.length, settings.seed, rank=place.rank, world=place.world)
    store = ShardedSnapshots(settings.out / "snapshots", place)
    begun = _begun(settings, packs, store.identity())
    run_settings = _run_settings(settings, begun["steps"])
    stream = BatchStream(packs, ahead=0 if place.device.type == "cpu" else 2 * settings.accumulation)
    console.print(f"train {describe(tokens)}; held out {len(test)}; {run_settings.steps} steps", markup=False)

    set_seeds(settings.seed)
    with torch.device("meta"):
        model = TrainedLanguageModel(config, recompute=settings.recompute)
    weights = load_language_model(source)[1] if place.rank == 0 else {}
    place_model(model, weights, place)
    del weights
    optimizer = optimizer_of(model, run_settings, settings.mctp_rate)
    run = Run(
        settings.out,
        run_settings,
        {"model": model, "optimizer": optimizer, "stream": stream},
        [optimizer],
        identity={
            "model": asdict(config),
            "length": settings.length,
            "tokens": tokens.fingerprint,
            "pattern": list(pattern),
            "mctp_rate": settings.mctp_rate,
            "epochs": None if settings.steps else settings.epochs,
            "checkpoint": checkpoint_sha256(source),
            **begun,
        },
        store=store,
        main=place.rank == 0,
        agree=place.agree,
        console=console,
    )
    train(run, model, [optimizer], stream, scored, tokenizer.vocabulary.audio_offset, settings.accumulation, place)
    result = settings.out / "checkpoint"
    weights = gathered_weights(model)
    if place.rank == 0:
        write_result(settings.checkpoint, weights, pattern, settings.dtype, result)
        console.print(f"wrote {result}", markup=False)
    wait(place)
    return result


def _read_config(source: Path) -> LanguageModelConfig:
    """Sizes, after a check that all weights are there with these sizes (without reading them)."""
    try:
        config = LanguageModelConfig.from_json((source / "config.json").read_text(encoding="utf-8"), str(source))
    except OSError as error:
        raise CheckpointError(f"{source}/config.json: cannot be read ({error}); give a complete checkpoint") from error
    with open_folder(source) as weights:
        shapes = language_model_shapes(config)
        wrong = [key for key, shape in shapes.items() if tuple(weights.shapes.get(key, ())) != shape]
    if wrong:
        raise CheckpointError(
            f"{source}: {len(wrong)} weights are missing or of another size than config.json says ({wrong[0]}, ...)"
        )
    return config


def _pattern(settings: FinetuneSettings, config: LanguageModelConfig, source: Path) -> tuple[int, ...]:
    """The interleaving to train: what was asked, the checkpoint's own, or boost where that one is vanilla."""
    try:
        if settings.mode is not None:
            pattern = parse_mode(settings.mode, config.mctp_modules or None).pattern
        else:
            pattern = default_pattern(source / "generation_config.json", config)
            if min(pattern[1::2]) < 3:
                pattern = NAMED_MODES["boost"]
    except InvalidRequest as error:
        raise TrainingError(f"--mode: {error}") from error
    if min(pattern[1::2]) < 3:
        raise TrainingError(f"--mode: {settings.mode!r} does not interleave text and audio; take boost or balance")
    return pattern


def _split(
    conversations: Sequence[Conversation], settings: FinetuneSettings
) -> tuple[list[Conversation], list[Conversation]]:
    """(to train on, held out)."""
    trained = [c for c in conversations if c.split != "test"]
    held_out = [c for c in conversations if c.split == "test"]
    if not trained:
        raise TrainingError(f'{settings.data}: every line says "split": "test"; there is nothing to train on')
    if not held_out:
        count = min(settings.held_out, len(trained) // 10)
        chosen = set(np.random.default_rng(settings.seed).permutation(len(trained))[:count].tolist())
        held_out = [c for i, c in enumerate(trained) if i in chosen]
        trained = [c for i, c in enumerate(trained) if i not in chosen]
    return trained, held_out


def _begun(settings: FinetuneSettings, packs: PackStream, before: Mapping[str, Any]) -> dict[str, int]:
    """Steps, accumulation and processes of the first command: other numbers of processes go on with its steps.

    Args:
        before: what the latest snapshot tells.

    Raises:
        TrainingError: the packs of a step were others, of a process and altogether.
    """
    here, world = settings.accumulation, packs.world
    if "processes" not in before:
        steps = max(1, math.ceil(settings.epochs * packs.epoch_packs() / here / world))
        return {"steps": settings.steps or steps, "accumulation": here, "processes": world}
    begun = {name: before[name] for name in ("steps", "accumulation", "processes")}
    if here != begun["accumulation"] and here * world != begun["accumulation"] * begun["processes"]:
        raise TrainingError(
            f"--accumulation: {here} with {world} processes, but {settings.out} was begun with {begun['accumulation']} "
            f"and {begun['processes']}; take the same accumulation, or as many packs altogether"
        )
    return {**begun, "steps": settings.steps or begun["steps"]}


def _run_settings(settings: FinetuneSettings, steps: int) -> RunSettings:
    return RunSettings(
        steps=steps,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        seed=settings.seed,
        log_every=settings.log_every,
        save_every=settings.save_every,
        evaluate_every=settings.evaluate_every,
    )
