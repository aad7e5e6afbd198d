"""Which finished checkpoint a training starts from, as it is asked for on the command line."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from training.config import TrainingConfig
from training.errors import TrainingError
from training.reuse import (
    PARTS,
    continue_audio_networks,
    keep_language_model,
    take_audio_networks,
    take_language_model,
)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the networks come from that are not trained from nothing.

    Attributes:
        audio_from: checkpoint whose audio networks are kept; the language model is trained from nothing.
        continue_from: checkpoint that is trained on: stage 4 starts from its language model.
        continue_audio: audio networks of `continue_from` that are trained on as well.
        keep_language_model: they alone are trained on; the language model of `continue_from` stays as it is.
    """

    audio_from: Path | None = None
    continue_from: Path | None = None
    continue_audio: tuple[str, ...] = ()
    keep_language_model: bool = False

    def __post_init__(self) -> None:
        """Raises TrainingError where the options do not fit each other."""
        for given, option in (
            (bool(self.continue_audio), "--continue-audio"),
            (self.keep_language_model, "--keep-language-model"),
        ):
            if given and self.continue_from is None:
                raise TrainingError(f"{option}: there is no checkpoint to go on with; name it with --continue-from")
        if unknown := sorted(set(self.continue_audio) - set(PARTS)):
            raise TrainingError(
                f"--continue-audio: {', '.join(unknown)} unknown; audio networks are {', '.join(PARTS)}"
            )
        codes_change = "speech_tokenizer" in self.continue_audio
        if codes_change and "flow" not in self.continue_audio:
            raise TrainingError(
                "--continue-audio: the flow must follow a speech tokenizer's new codes; add flow as well"
            )
        if self.keep_language_model and codes_change:
            raise TrainingError(
                "--keep-language-model: it must follow a speech tokenizer's new codes; leave one of the two out"
            )
        if self.keep_language_model and not self.continue_audio:
            raise TrainingError(
                "--keep-language-model: nothing is left to train; name vocoder or flow with --continue-audio"
            )

    def options(self) -> str:
        """What was typed, for the card."""
        words: list[str] = []
        for option, checkpoint in (("--audio-from", self.audio_from), ("--continue-from", self.continue_from)):
            if checkpoint is not None:
                words += [option, checkpoint.as_posix()]
        for name in self.continue_audio:
            words += ["--continue-audio", name]
        if self.keep_language_model:
            words.append("--keep-language-model")
        return shlex.join(words)

    def take(self, config: TrainingConfig, out: Path) -> None:
        """Put the networks into `out`; what is there already stays, so the same command goes on after a stop.

        Raises:
            CheckpointError: a network cannot be read.
            TrainingError: sizes that differ from the configuration's, parts in `out` that do not belong to this
                training, a checkpoint without records, or a file that cannot be written.
        """
        if self.continue_from is not None:
            # First what asks most of a checkpoint's records: a checkpoint that is refused leaves nothing behind.
            take = keep_language_model if self.keep_language_model else take_language_model
            take(config, self.continue_from, out)
            continue_audio_networks(config, self.continue_from, out, self.continue_audio)
        if (audio := self.audio_from or self.continue_from) is not None:
            kept = [name for name in PARTS if name not in self.continue_audio]
            take_audio_networks(config, audio, out, kept)
