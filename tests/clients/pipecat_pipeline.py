"""pipecat's services for OpenAI against the gateway, each in a pipeline: TTS, STT, Realtime."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

from checks import Case, WrongAnswer, blocks, check_speech, check_text, require, run, silence, words
from loguru import logger
from pipecat.frames.frames import (
    CancelFrame,
    EndFrame,
    ErrorFrame,
    Frame,
    InputAudioRawFrame,
    InterruptionFrame,
    LLMContextFrame,
    LLMFullResponseEndFrame,
    LLMRunFrame,
    TranscriptionFrame,
    TTSAudioRawFrame,
    TTSSpeakFrame,
    TTSStoppedFrame,
    TTSTextFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.openai.realtime.events import (
    AudioConfiguration,
    AudioInput,
    AudioOutput,
    InputAudioTranscription,
    SessionProperties,
    TurnDetection,
)
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from pipecat.services.openai.stt import OpenAISTTService
from pipecat.services.openai.tts import OpenAITTSService
from pipecat.workers.runner import WorkerRunner


class Watch(FrameProcessor):
    """Keeps what passes, in both directions; an error ends the wait for anything else."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[Frame] = []
        self.new = asyncio.Event()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        self.frames.append(frame)
        self.new.set()
        await self.push_frame(frame, direction)

    def of(self, kind: type[Frame]) -> list:  # type: ignore[type-arg]
        return [frame for frame in self.frames if isinstance(frame, kind)]

    async def until(self, kind: type[Frame]) -> None:
        while not self.of(kind):
            if errors := self.of(ErrorFrame):
                raise WrongAnswer(errors[0].error)
            self.new.clear()
            await self.new.wait()

    def sound(self) -> bytes:
        require("24 kHz, mono", {(f.sample_rate, f.num_channels) for f in self.of(TTSAudioRawFrame)} == {(24_000, 1)})
        return b"".join(frame.audio for frame in self.of(TTSAudioRawFrame))


@contextlib.asynccontextmanager
async def running(*processors: FrameProcessor) -> AsyncIterator[tuple[PipelineWorker, Watch, Watch]]:
    """A pipeline: its worker, what comes out upstream and downstream of the processors."""
    above, below = Watch(), Watch()
    params = PipelineParams(audio_in_sample_rate=16_000, audio_out_sample_rate=24_000)
    worker = PipelineWorker(Pipeline([above, *processors, below]), params=params, enable_rtvi=False)
    started = asyncio.Event()

    @worker.event_handler("on_pipeline_started")
    async def _(*_: object) -> None:
        started.set()

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    task = asyncio.create_task(runner.run())
    try:
        await started.wait()
        yield worker, above, below
        await worker.queue_frame(EndFrame())
    except BaseException:
        await worker.queue_frame(CancelFrame())
        raise
    finally:
        await asyncio.wait([task], timeout=10)
    for watch in (above, below):
        require(f"no error: {watch.of(ErrorFrame)}", not watch.of(ErrorFrame))


async def text_to_speech(case: Case) -> None:
    settings = OpenAITTSService.Settings(model=case.model, voice="alloy")
    async with running(OpenAITTSService(api_key="none", base_url=case.api, settings=settings)) as (worker, _, below):
        await worker.queue_frame(TTSSpeakFrame(case.sentence))
        await below.until(TTSStoppedFrame)
        check_speech("sound", below.sound(), case.sentence_s)
        require("one frame is no stream", len(below.of(TTSAudioRawFrame)) > 1)


async def speech_to_text(case: Case) -> None:
    settings = OpenAISTTService.Settings(model=case.model)
    async with running(OpenAISTTService(api_key="none", base_url=case.api, settings=settings)) as (worker, _, below):
        await worker.queue_frame(VADUserStartedSpeakingFrame())
        await say(worker, case)
        await worker.queue_frame(VADUserStoppedSpeakingFrame())
        await below.until(TranscriptionFrame)
        check_text("transcript", below.of(TranscriptionFrame)[0].text, case.question)


async def say(worker: PipelineWorker, case: Case, after_s: float = 0.0, pause_s: float = 0.0) -> None:
    """The spoken question, and silence after it, a tenth of a second at a time; `pause_s` between them."""
    pcm, rate_hz = case.question_pcm()
    for block in blocks(pcm + silence(after_s, rate_hz), rate_hz // 10 * 2):
        await worker.queue_frame(InputAudioRawFrame(audio=block, sample_rate=rate_hz, num_channels=1))
        await asyncio.sleep(pause_s)


def realtime_service(case: Case, turn_detection: TurnDetection | bool) -> OpenAIRealtimeLLMService:
    audio = AudioConfiguration(
        input=AudioInput(
            transcription=InputAudioTranscription(model=case.model, language="en"), turn_detection=turn_detection
        ),
        output=AudioOutput(voice="marin"),
    )
    settings = OpenAIRealtimeLLMService.Settings(model=case.model, session_properties=SessionProperties(audio=audio))
    base_url = case.api.replace("http", "ws", 1) + "/realtime"
    return OpenAIRealtimeLLMService(api_key="none", base_url=base_url, settings=settings)


async def realtime_typed(case: Case) -> None:
    async with running(realtime_service(case, TurnDetection())) as (worker, _, below):
        await worker.queue_frame(LLMContextFrame(LLMContext([{"role": "user", "content": case.typed}])))
        await below.until(TTSStoppedFrame)
        check_text("transcript", "".join(frame.text for frame in below.of(TTSTextFrame)), case.typed_answer)
        check_speech("sound", below.sound(), case.typed_answer_s)


async def realtime_spoken(case: Case) -> None:
    """The server finds the end of the turn, answers, and writes down what was asked."""
    async with running(realtime_service(case, TurnDetection(silence_duration_ms=300))) as (worker, above, below):
        await say(worker, case, after_s=1.0, pause_s=0.1)
        await below.until(TTSStoppedFrame)
        check_text("transcript", "".join(frame.text for frame in below.of(TTSTextFrame)), case.answer)
        check_speech("sound", below.sound(), case.answer_s)
        await above.until(TranscriptionFrame)
        check_text("the user's turn", above.of(TranscriptionFrame)[0].text, case.question)


async def realtime_by_hand(case: Case) -> None:
    """turn_detection null: the client clears and cancels (nothing runs, which must do no harm), commits and creates."""
    async with running(realtime_service(case, False)) as (worker, _, below):
        await worker.queue_frame(UserStartedSpeakingFrame())
        await say(worker, case)
        await worker.queue_frame(UserStoppedSpeakingFrame())
        await below.until(LLMFullResponseEndFrame)
        check_text("transcript", "".join(frame.text for frame in below.of(TTSTextFrame)), case.answer)
        check_speech("sound", below.sound(), case.answer_s)


async def realtime_interrupted(case: Case) -> None:
    """With the context aggregators of an agent: speech during an answer interrupts it, and is answered."""
    pair = LLMContextAggregatorPair(LLMContext([{"role": "user", "content": case.typed}]))
    service = realtime_service(case, TurnDetection(silence_duration_ms=300))
    async with running(pair.user(), service) as (worker, _, below):
        await worker.queue_frame(LLMRunFrame())
        await below.until(TTSAudioRawFrame)
        await say(worker, case, after_s=1.0, pause_s=0.1)
        await below.until(InterruptionFrame)
        await below.until(TTSStoppedFrame)
        place = below.frames.index(below.of(InterruptionFrame)[0])
        after = [frame for frame in below.frames[place:] if isinstance(frame, TTSTextFrame)]
        require("an answer to the second turn", words("".join(frame.text for frame in after)))


if __name__ == "__main__":
    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    sys.exit(
        run(text_to_speech, speech_to_text, realtime_typed, realtime_spoken, realtime_by_hand, realtime_interrupted)
    )
