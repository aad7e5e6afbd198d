"""A long text read aloud, sentence by sentence, as one stream: `Reading`, and `AsyncReading`, the same with `async`.

Each sentence is a request of its own. The next one is sent when the first sound of this one is here, never more than
one ahead: its sound is there when this one ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from vita_audio.contract.errors import InvalidRequest, VitaError
from vita_audio.contract.fields import RequestFields
from vita_audio.contract.messages import Status
from vita_client.channel import DEFAULT_TIMEOUT_S
from vita_client.events import Collector, Event, Metrics, Reply, StatusUpdate
from vita_client.joining import Joiner
from vita_client.request import Request, build_request, check_timeout
from vita_client.sentences import Splitter, has_words, split
from vita_client.tasks import task_is_cancelled

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from vita_client.aio import AsyncClient
    from vita_client.client import Client

#: Added to the seed for each sentence; large and odd, so that texts with neighbouring seeds share none.
_SEED_STEP = 0x9E3779B97F4A7C15
#: For a sentence that comes when the time of the whole is over: it fails by its deadline, as any other.
_LEAST_TIMEOUT_S = 0.1


@dataclass(slots=True)
class _Sentence:
    """A sentence that was sent. `ahead`: while the one before it was coming."""

    number: int
    text: str
    request: Request
    stream: Any
    ahead: bool
    answered: bool = False


class ReadingBase:
    """What both kinds share: the requests, and how each way to end one is taken."""

    _text_kinds: ClassVar[tuple[type, ...]] = (Iterable,)

    def __init__(
        self,
        client: Any,
        text: object,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        total_s: float | None = None,
        headers: Mapping[str, str] | None = None,
        **fields: Unpack[RequestFields],
    ) -> None:
        self._client, self._headers, self._timeout_s = client, headers, check_timeout(timeout_s)
        self._total_s = None if total_s is None else check_timeout(total_s)
        if (fields.get("task") or "tts") != "tts":
            raise InvalidRequest("TASK", fields["task"], "a text is read aloud by tts", "leave it out")
        fields["task"] = "tts"
        if isinstance(text, bytes) or not isinstance(text, self._text_kinds):
            limit = "it is a string, or strings one after another"
            raise InvalidRequest("TEXT", f"type {type(text).__name__}", limit, "decode bytes")
        build_request(text if isinstance(text, str) else "any", **fields)
        self._fields, self._text = fields, text
        self._sent = 0
        self._current: _Sentence | None = None
        self._joiner, self._pending = Joiner(), deque[Event]()
        self._over = self._cancelled = False
        self._start_s, self._end_s = time.perf_counter(), 0.0

    @property
    def status(self) -> Status | None:
        """The last status, as of one stream: `seed` is that of the whole, `reason` at its end that of the first
        sentence which did not end by `end_token` (`max_tokens`, for example).
        """
        return self._joiner.status

    @property
    def cancelled(self) -> bool:
        """True after `cancel()`."""
        return self._cancelled

    @property
    def metrics(self) -> Metrics:
        """The numbers so far, counted from when the reading was made."""
        return replace(self._joiner.metrics, elapsed_ms=self._elapsed_ms())

    def _elapsed_ms(self) -> float:
        return ((self._end_s or time.perf_counter()) - self._start_s) * 1e3

    def _send(self, text: str | None) -> _Sentence | None:
        """Send a sentence; None is the end of the text, and of a reading cancelled while it waited for more."""
        if text is None or self._cancelled:
            return None
        self._sent += 1
        with self._named(self._sent):
            if self._joiner.status is not None:
                self._fields["seed"] = (self._joiner.status.seed + (self._sent - 1) * _SEED_STEP) % 2**64
            request = build_request(text.strip(), **self._fields)
            return _Sentence(self._sent, text, request, self._stream(request), self._current is not None)

    def _stream(self, request: Request) -> Any:
        timeout_s = self._timeout_s
        if self._total_s is not None:
            timeout_s = min(timeout_s, max(_LEAST_TIMEOUT_S, self._total_s - self._elapsed_ms() / 1e3))
        return self._client.send(request, timeout_s=timeout_s, headers=self._headers)

    def _begin(self, sentence: _Sentence | None) -> None:
        """The sentence whose events come now; None when there are no more."""
        self._current = sentence
        if sentence is not None:
            self._joiner.begin(sentence.text)
        elif self._cancelled:
            return
        elif not self._sent:
            shown = self._text if isinstance(self._text, str) else "the text"
            raise InvalidRequest("TEXT", shown, "it has no letter and no digit", "send words")
        else:
            self._pending.extend(self._joiner.end())
            self._stop()

    def _show(self, sentence: _Sentence, event: Event | None) -> None:
        """An event of the current sentence; None when it is over."""
        sentence.answered = True
        if event is None:
            self._current = None
        else:
            self._pending.extend(self._joiner.add(event, self._elapsed_ms()))

    def _sounds(self, event: Event | None) -> bool:
        """Whether it is time to send the next sentence: a response with sound is complete, and the seed known by it."""
        return isinstance(event, StatusUpdate) and event.status.state in ("running", "done") and self._joiner.sounds

    def _failed(self, sentence: _Sentence, error: VitaError) -> None:
        """Raise the error, unless the sentence was refused because the one before it had the last place."""
        if error.code == "server_full" and sentence.ahead and not sentence.answered:
            sentence.ahead, sentence.stream = False, self._stream(sentence.request)
            return
        with self._named(sentence.number):
            raise error

    @contextlib.contextmanager
    def _named(self, number: int) -> Iterator[None]:
        """Errors say which sentence it was."""
        try:
            yield
        except VitaError as error:
            count = sum(map(has_words, split(self._text))) if isinstance(self._text, str) else 0
            if count != 1:
                error.args = (f"sentence {number}{f' of {count}' if count else ''}: {error}",)
            raise

    def _stop(self) -> None:
        self._over, self._end_s = True, self._end_s or time.perf_counter()


class Reading(ReadingBase, Iterator[Event]):
    """A text being read aloud: an iterator of events as of one `Stream`, and a context manager that cancels the rest.

    Nothing is sent before the first event is asked for. Errors as `Stream`; they name the sentence.
    """

    def __init__(self, client: Client, text: str | Iterable[str], **options: Any) -> None:
        super().__init__(client, text, **options)
        self._sentences = _sentences(text)
        self._ahead: _Sentence | None = None
        self._problem: Exception | None = None

    def collect(self) -> Reply:
        """Everything from here to the end of the text."""
        collector = Collector()
        for event in self:
            collector.add(event)
        return collector.reply(self.status, self.metrics)

    def cancel(self) -> None:
        """Stop: on the server, too, and the iteration ends; one that waits for more text ends when that is there.

        From any thread.
        """
        self._cancelled = True
        self._stop()
        for sentence in (self._current, self._ahead):
            if sentence is not None:
                sentence.stream.cancel()

    def __next__(self) -> Event:
        while not self._cancelled:
            if self._pending:
                return self._pending.popleft()
            if self._over:
                break
            try:
                self._advance()
            except BaseException:
                self.cancel()
                raise
        if self._cancelled:
            self.cancel()  # what was on its way out when another thread cancelled
        raise StopIteration

    def _advance(self) -> None:
        sentence = self._current
        if sentence is None:
            if self._problem is not None:
                raise self._problem
            following, self._ahead = self._ahead or self._send_next(), None
            return self._begin(following)
        try:
            event = next(sentence.stream, None)
        except VitaError as error:
            return self._failed(sentence, error)
        self._show(sentence, event)
        if self._sounds(event) and self._ahead is None and self._problem is None:
            try:
                self._ahead = self._send_next()
            except Exception as problem:  # noqa: BLE001 - of the text itself: raised when this sentence is over
                self._problem = problem

    def _send_next(self) -> _Sentence | None:
        return self._send(next(self._sentences, None))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if not self._over:
            self.cancel()


class AsyncReading(ReadingBase, AsyncIterator[Event]):
    """As `Reading`. The text may come while it is read, bit by bit: a sentence is sent when the next one begins.

    Cancelling the task that reads it cancels what is left on the server too.
    """

    _text_kinds = (Iterable, AsyncIterable)

    def __init__(self, client: AsyncClient, text: str | Iterable[str] | AsyncIterable[str], **options: Any) -> None:
        super().__init__(client, text, **options)
        self._sentences = _async_sentences(text)
        self._ahead: asyncio.Task[_Sentence | None] | None = None

    def __del__(self) -> None:
        if hasattr(self, "_ahead") and not self._over:
            with contextlib.suppress(RuntimeError):  # its loop is closed, and with it what waits for more text
                self.cancel()

    async def collect(self) -> Reply:
        """As `Reading.collect`."""
        collector = Collector()
        async for event in self:
            collector.add(event)
        return collector.reply(self.status, self.metrics)

    def cancel(self) -> None:
        """As `Reading.cancel`; from its loop only."""
        self._cancelled = True
        self._stop()
        if self._current is not None:
            self._current.stream.cancel()
        if self._ahead is not None and not self._ahead.cancel() and not self._ahead.cancelled():
            sentence = None if self._ahead.exception() else self._ahead.result()
            if sentence is not None:
                sentence.stream.cancel()

    async def __anext__(self) -> Event:
        while not self._cancelled:
            if self._pending:
                return self._pending.popleft()
            if self._over:
                break
            try:
                await self._advance()
            except asyncio.CancelledError:
                # Of this task, or of the one that waits for more text, by `cancel`.
                if task_is_cancelled() or not self._cancelled:
                    self.cancel()
                    raise
            except BaseException:
                self.cancel()
                raise
        raise StopAsyncIteration

    async def _advance(self) -> None:
        sentence = self._current
        if sentence is None:
            # A task, also for the first one: `cancel` has to reach what waits for more text.
            self._ahead = self._ahead or asyncio.ensure_future(self._send_next())
            following = await self._ahead
            self._ahead = None
            return self._begin(following)
        try:
            event = await anext(sentence.stream, None)
        except VitaError as error:
            return self._failed(sentence, error)
        self._show(sentence, event)
        if self._sounds(event) and self._ahead is None:
            self._ahead = asyncio.ensure_future(self._send_next())

    async def _send_next(self) -> _Sentence | None:
        return self._send(await anext(self._sentences, None))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        if not self._over:
            self.cancel()


def _checked(chunk: object) -> str:
    if not isinstance(chunk, str):
        raise InvalidRequest("TEXT", f"a part of type {type(chunk).__name__}", "its parts are strings", "decode bytes")
    return chunk


def _sentences(text: str | Iterable[str]) -> Iterator[str]:
    """The sentences of a text, or of its chunks, that can be read aloud."""
    splitter = Splitter()
    for chunk in (text,) if isinstance(text, str) else text:
        yield from filter(has_words, splitter.push(_checked(chunk)))
    yield from filter(has_words, splitter.finish())


async def _async_sentences(text: str | Iterable[str] | AsyncIterable[str]) -> AsyncIterator[str]:
    if not isinstance(text, AsyncIterable):
        for sentence in _sentences(text):
            yield sentence
        return
    splitter = Splitter()
    async for chunk in text:
        for sentence in filter(has_words, splitter.push(_checked(chunk))):
            yield sentence
    for sentence in filter(has_words, splitter.finish()):
        yield sentence
