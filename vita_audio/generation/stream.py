"""One stream's state: its tokens, how far backbone and cascade have come, and what its mode asks for next."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from vita_audio.contract.messages import State
from vita_audio.contract.modes import Mode
from vita_audio.engines.interface import ExtendRow
from vita_audio.generation.request import GenerationRequest


@dataclass(slots=True, eq=False)
class Stream:
    """Positions: `consumed` is m, the tokens the backbone has run over; `cascaded` is `valid`, the cascade rows that
    need no re-run (docs/model.md, "The fused cascade")."""

    id: str
    request: GenerationRequest
    mctp_modules: int
    token_limit: int  # prompt + output, at most the engine's context
    end_tokens: Collection[int]
    tokens: list[int] = field(init=False)
    slot: int = -1
    consumed: int = 0
    cascaded: int = 0
    cached: int = 0  # tokens of the prompt that the slot held already
    emitted: int = 0  # generated tokens already handed out
    state: State = "running"
    reason: str = ""
    _segments: Iterator[tuple[int, int]] = field(init=False)
    _backbone_left: int = field(init=False)
    _burst: int = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt)
        settings = self.request.settings
        self._segments = Mode(settings.mode, settings.pattern).segments()
        self._backbone_left, self._burst = next(self._segments)

    @property
    def prompt_tokens(self) -> int:
        return len(self.request.prompt)

    @property
    def keys(self) -> list[int]:
        """Of all tokens, for the prefix cache (`content_keys.py`)."""
        return [*self.request.keys, *self.tokens[self.prompt_tokens :]]

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def ended(self) -> bool:
        return self.state != "running"

    @property
    def reads_only(self) -> bool:
        """Its prompt is read, by the cascade too as far as that goes, and nothing is generated."""
        return bool(self.request.settings.read_only)

    @property
    def uses_mctp(self) -> bool:
        return any(self.request.settings.pattern[1::2])

    @property
    def wants_burst(self) -> bool:
        """The backbone's part of the segment is done and MCTP tokens are due."""
        return self._backbone_left == 0

    @property
    def burst_size(self) -> int:
        return min(self._burst, self._room)

    @property
    def cascade_rows_known(self) -> int:
        """Cascade rows [0, this) read only tokens that are already there."""
        return min(self.consumed, len(self.tokens) - self.mctp_modules)

    @property
    def _room(self) -> int:
        limit = min(self.token_limit, self.prompt_tokens + self.request.settings.max_tokens)
        return limit - len(self.tokens)

    def extend_row(self, stop: int, index: int | None) -> ExtendRow:
        """The backbone's next rows, those of tokens up to `stop`."""
        embedded = self.request.embedded and self.request.embedded.part(self.consumed, stop)
        return ExtendRow(self.slot, self.consumed, self.tokens[self.consumed : stop], index, embedded)

    def begin(self, slot: int, consumed: int, cascaded: int) -> None:
        """The stream has a slot, whose caches hold `consumed` tokens of its prompt and `cascaded` rows already."""
        self.slot, self.consumed, self.cascaded, self.cached = slot, consumed, cascaded, consumed

    def extended(self, stop: int, token: int | None) -> None:
        """The backbone has run over positions up to `stop` and sampled `token` (None: a prefill chunk)."""
        self.consumed = stop
        if token is None:
            return
        self._append([token])
        self._backbone_left -= 1
        if self._backbone_left == 0 and self._burst == 0:
            self._next_segment()

    def read(self) -> None:
        """A step is over: a stream that only reads ends with its prompt."""
        cascade = self.cascade_rows_known if self.uses_mctp else 0
        if self.reads_only and self.consumed == self.prompt_tokens and self.cascaded >= cascade:
            self.end("done", "read")

    def burst_done(self, tokens: Sequence[int]) -> None:
        """A burst has committed `tokens`."""
        self._append(tokens)
        self.cascaded = max(0, min(self.consumed, len(self.tokens) - 1 - self.mctp_modules))
        self._next_segment()

    def _next_segment(self) -> None:
        self._backbone_left, self._burst = next(self._segments)

    def _append(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self.tokens.append(token)
            if token in self.end_tokens:
                return self.end("done", "end_token")
        if self._room <= 0:
            budget_spent = self.generated >= self.request.settings.max_tokens
            self.end("done", "max_tokens" if budget_spent else "context_limit")

    def end(self, state: State, reason: str) -> None:
        if not self.ended:
            self.state, self.reason = state, reason

    def take_new(self) -> list[int]:
        """Generated tokens not handed out before."""
        new = self.tokens[self.prompt_tokens + self.emitted :]
        self.emitted += len(new)
        return new
