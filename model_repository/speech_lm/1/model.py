"""Triton adapter of `vita_audio.generation.service`: PROMPT_IDS, SETTINGS -> TOKENS, LM_STATUS as they come; STOP ends
a stream, DONE says that its sound is made.

`execute` only enqueues; the service's thread answers. Every request gets exactly one final flag: with its last tokens,
with an error, or alone (STOP, DONE).
"""

from __future__ import annotations

import os
from functools import partial

import numpy as np
import triton_python_backend_utils as pb_utils

from serving.adapter import FINAL, error_response, read, read_text, served_engines, start_logging, text_tensor
from serving.full_notice import FullNotice
from serving.metrics.generation import GenerationMeter
from serving.metrics.publisher import MetricsPublisher
from serving.metrics.recorder import Recorder
from serving.metrics.refusals import Refusals
from serving.warm_up import warm_up_generation
from vita_audio.contract.errors import InvalidRequest
from vita_audio.contract.messages import GenerationSettings, Status
from vita_audio.engines.registry import open_language_model
from vita_audio.generation.request import GenerationRequest, TokenDelta
from vita_audio.generation.service import GenerationService

#: On a CPU the language model runs seconds ahead of the sound, the decoder does not: where both want a core, it yields.
NICENESS = 10


class TritonPythonModel:
    """Continuous batching of all streams in one worker."""

    def initialize(self, args: dict[str, str]) -> None:
        start_logging(args["model_name"])
        settings, manifest, source = served_engines()
        if source.gpu is None:
            os.nice(NICENESS)
        engine = open_language_model(source, settings.slots)
        end_tokens = manifest.vocabulary.end_tokens
        self._notice = FullNotice(settings.full_file)
        self._notice.show(None)  # whatever a process before this one left
        self._service = GenerationService(
            engine, end_tokens, settings.queue, source.prefill_chunk, awaits_release=True, on_full=self._notice.show
        )
        warm_up_generation(self._service, manifest.limits)
        self._worker, self._recorder = args["model_instance_name"], Recorder()
        self._meter, self._refusals = GenerationMeter(self._recorder), Refusals(self._recorder, "speech_lm")
        self._recorder.set("vita_queue_limit", settings.queue)
        self._recorder.set("vita_kv_capacity_tokens", settings.slots * manifest.limits.context_tokens)
        self._metrics = MetricsPublisher(self._recorder, self._measure)

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._accept(request, sender)
            except Exception as error:  # noqa: BLE001 - becomes the answer
                self._refusals.count(error)
                sender.send(error_response(error), flags=FINAL)

    def finalize(self) -> None:
        self._metrics.close()
        self._service.close()

    def _accept(self, request: pb_utils.InferenceRequest, sender: pb_utils.InferenceResponseSender) -> None:
        for name, take_note in (("STOP", self._service.cancel), ("DONE", self._service.release)):
            stream = read_text(request, name)
            if stream is not None:
                take_note(stream)
                sender.send(flags=FINAL)
                return
        prompt, settings = read(request, "PROMPT_IDS"), read_text(request, "SETTINGS")
        if prompt is None or settings is None:
            raise InvalidRequest("PROMPT_IDS", prompt, "PROMPT_IDS and SETTINGS start a stream, STOP ends one")
        try:
            parsed = GenerationSettings.from_json(settings)
        except (ValueError, TypeError, KeyError) as error:
            raise InvalidRequest("SETTINGS", settings, f"it is written by `prompt` ({error})") from error
        generation = GenerationRequest(prompt.tolist(), parsed)
        self._service.submit(generation, partial(self._emit, sender, generation))

    def _emit(self, sender: pb_utils.InferenceResponseSender, request: GenerationRequest, delta: TokenDelta) -> None:
        """Measure and send one delta; runs on the service's thread."""
        self._meter.delta(delta, request.settings, len(request.prompt))
        _send(sender, request.settings, delta)

    def _measure(self) -> None:
        stats, recorder, stage = self._service.stats(), self._recorder, "speech_lm"
        self._notice.refresh()
        recorder.set("vita_streams", stats.running, stage=stage, state="running", worker=self._worker)
        recorder.set("vita_streams", stats.waiting, stage=stage, state="waiting", worker=self._worker)
        recorder.set("vita_places_taken", stats.running + stats.waiting + stats.sounding)
        recorder.set("vita_slots", stats.slots)
        recorder.set("vita_kv_tokens", self._meter.cached_tokens)
        recorder.total("vita_busy_ms_total", stats.busy_ms, stage=stage)
        for reason, count in stats.finished.items():
            recorder.total("vita_streams_ended_total", count, stage=stage, reason=reason)


def _send(sender: pb_utils.InferenceResponseSender, settings: GenerationSettings, delta: TokenDelta) -> None:
    """One delta as one response."""
    status = Status(
        stream=delta.stream,
        index=delta.index,
        state=delta.state,
        reason=delta.reason,
        task=settings.task,
        mode=settings.mode,
        seed=settings.seed,
        timings_ms=delta.timings_ms,
    )
    tensors = [
        pb_utils.Tensor("TOKENS", np.asarray(delta.tokens, np.int32)),
        text_tensor("LM_STATUS", status.to_json()),
    ]
    sender.send(pb_utils.InferenceResponse(tensors), flags=FINAL if delta.final else 0)
