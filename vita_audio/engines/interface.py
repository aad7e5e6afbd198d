"""What the scheduler and the streaming decoder ask of an engine. KV layout, padding, graphs stay inside engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a stream samples. `temperature == 0` is greedy; `top_k == 0` and `top_p == 1.0` switch those filters off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0 or self.top_k == 1


@dataclass(frozen=True, slots=True, eq=False)
class Embedded:
    """Rows that the backbone takes at some places in place of the embeddings of the ids there (speech of a Plus model).

    The MCTP modules do not: they read the ids, as the released code does (docs/plus.md, "Prompt and language model").

    Args:
        places: [n], int64, ascending; counted from the first token of what this belongs to.
        rows: [n, hidden size].
    """

    places: Ints
    rows: Floats

    def part(self, start: int, stop: int) -> Embedded | None:
        """What stands at places [start, stop), counted from `start`; None where nothing does."""
        first, last = np.searchsorted(self.places, (start, stop))
        return Embedded(self.places[first:last] - start, self.rows[first:last]) if first < last else None


@dataclass(slots=True)
class ExtendRow:
    """Backbone over the tokens at positions [start, start + len(tokens)) of one slot.

    `index` is the generated-token index (0 = first new token) of the sample to draw after the last row, or None when
    the rows are a prefill chunk that needs no sample. Engines of a checkpoint that reads speech as tokens refuse
    `embedded` (`embedded_size` 0).
    """

    slot: int
    start: int
    tokens: Sequence[int]
    index: int | None
    embedded: Embedded | None = None


@dataclass(slots=True)
class BurstRow:
    """All K MCTP modules over rows [start, stop) of one slot.

    `tokens` are the known tokens at positions start+1 ... (row j of module k reads token j+k+1). A sampling burst has
    stop - start of them and yields K new tokens, of which the engine commits and returns the first `commit`. A prefill
    chunk knows stop - start + K - 1 tokens (all that its rows read), samples nothing and has `index` None.
    """

    slot: int
    start: int
    stop: int
    tokens: Sequence[int]
    commit: int
    index: int | None


class LanguageModelEngine(Protocol):
    """Backbone + MCTP over a fixed number of slots. Not thread safe: one worker drives it.

    Every method raises EngineError for a slot without a stream, and for rows beyond what is cached
    (`cached_tokens.py` keeps that account for all engines).
    """

    slots: int
    context: int  # tokens a slot holds
    mctp_modules: int  # K
    vocab_size: int
    embedded_size: int  # of the rows of `ExtendRow.embedded`; 0 of a checkpoint that reads speech as tokens

    def begin(self, slot: int, sampling: Sampling, keep: int = 0) -> int:
        """Start a stream in a free slot, of whose cache the first `keep` tokens stay valid: those of a stream before.

        Returns:
            Cascade rows that stay valid, at most max(0, keep - K): the first burst starts there at the latest.

        Raises:
            EngineError: the slot is in use, or holds fewer than `keep` tokens.
        """
        ...

    def extend(self, rows: Sequence[ExtendRow]) -> list[int | None]:
        """Run the backbone, at most one row per slot; the sampled token of each row, None for a prefill chunk."""
        ...

    def burst(self, rows: Sequence[BurstRow]) -> list[list[int]]:
        """Run the fused cascade for several slots; per row the `commit` sampled tokens (empty for a prefill chunk)."""
        ...

    def release(self, slot: int) -> None:
        """End the stream of a slot; what it has cached stays until a stream begins there."""
        ...


class SpeechTokenizerEngine(Protocol):
    """WhisperVQ encoder: log-mel features to audio token ids."""

    num_mel_bins: int

    def tokens(self, features: Floats, valid_frames: int) -> Ints:
        """features [mels, frames] of one piece of at most 30 s, frames even -> ids [ceil(valid_frames / 8)] (int64).

        Only the first `valid_frames` frames hold speech; the rest is padding, which no position attends to.
        """
        ...


@runtime_checkable
class BatchedSpeechTokenizerEngine(SpeechTokenizerEngine, Protocol):
    """A speech tokenizer that runs several pieces together."""

    def tokens_of(self, pieces: Sequence[tuple[Floats, int]]) -> list[Ints]:
        """`tokens` of each (features, valid_frames)."""
        ...


class SpeechEncoderEngine(Protocol):
    """SenseVoice encoder and projector of a Plus model: features to prompt embeddings."""

    feature_shift: Floats  # [560]: features are (stacked log-mel + shift) * scale
    feature_scale: Floats
    embedding_size: int  # hidden size of the language model

    def embeddings(self, features: Floats) -> Floats:
        """features [rows, 560] of one clip -> embeddings [rows + 4, embedding_size], one for each place in the prompt.

        Raises EngineError for other shapes and for no row.
        """
        ...


class FlowEngine(Protocol):
    """Flow-matching model: audio tokens to mel. All arrays carry a batch axis of windows of EQUAL geometry."""

    mel_channels: int
    block_tokens: int  # the token encoder attends in blocks of this many tokens (10)

    def condition(self, tokens: Ints, frame_token: Ints) -> Floats:
        """tokens [B, N]; frame_token [F] gives the window token (0..N-1) of each mel frame -> mu [B, mels, F]."""
        ...

    def velocity(self, x: Floats, mu: Floats, cond: Floats, t: float) -> Floats:
        """One guided estimator call (classifier-free guidance included): all [B, mels, F] -> v [B, mels, F]."""
        ...


@runtime_checkable
class SolvingFlowEngine(FlowEngine, Protocol):
    """A flow that takes all steps itself, so that x stays on its device."""

    def solve(self, x: Floats, mu: Floats, cond: Floats, times: Sequence[float]) -> Floats:
        """Euler steps along `times`, from times[0] to times[-1]: all [B, mels, F] -> mel [B, mels, F]."""
        ...


class VocoderEngine(Protocol):
    """HiFT vocoder, split so that phase and noise can be carried across chunks."""

    mel_channels: int
    harmonics: int  # 9: the fundamental and 8 overtones
    source_weight: Floats  # [harmonics], m_source.l_linear.weight
    source_bias: float

    def f0(self, mel: Floats) -> Floats:
        """mel [B, mels, T] -> f0 in Hz [B, T]."""
        ...

    def synthesize(self, mel: Floats, source: Floats) -> Floats:
        """mel [B, mels, T], source [B, 256 T] -> wave [B, 256 T], clamped to +-0.99."""
        ...
