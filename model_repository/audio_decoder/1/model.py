"""Triton adapter of `vita_audio.decoding.service`: TOKENS, LM_STATUS -> TEXT_DELTA, TOKENS, PCM, STATUS.

`execute` only enqueues; the service's thread answers, with a response for each decode that a request makes due. Every
request gets exactly one response with the final flag, its last, and never an error: after a decoupled model, an error
would leave the ensemble's request in flight for ever (seen, see docs/triton.md), so a failure is a STATUS. When the
client is gone or decoding failed, a STOP request ends the stream in speech_lm; a DONE request says of every stream that
it is over, so that its place can be given away.
"""

from __future__ import annotations

import logging
import time
from functools import partial

import numpy as np
import triton_python_backend_utils as pb_utils

from serving.adapter import FINAL, read, read_text, served_engines, start_logging, text_tensor
from serving.metrics.playout import PlayoutMeter
from serving.metrics.publisher import MetricsPublisher
from serving.metrics.recorder import Recorder
from vita_audio.contract.messages import Status
from vita_audio.decoding.decoder import StreamingDecoder
from vita_audio.decoding.served_stream import DecodedChunk
from vita_audio.decoding.service import DecodingService
from vita_audio.engines.registry import open_audio_decoder
from vita_audio.text.tokenizer import TextTokenizer

log = logging.getLogger(__name__)


class TritonPythonModel:
    """Decodes the chunks of all streams in one worker."""

    def initialize(self, args: dict[str, str]) -> None:
        start_logging(args["model_name"])
        settings, manifest, source = served_engines()
        decoder = StreamingDecoder(*open_audio_decoder(source))
        decoder.warm_up(source.decoder_batch)
        tokenizer = TextTokenizer(settings.engines / "tokenizer.json")
        self._service = DecodingService(
            decoder,
            manifest.vocabulary,
            tokenizer.detokenizer,
            partial(_tell, "STOP"),
            max_batch=source.decoder_batch,
            on_end=partial(_tell, "DONE"),
        )
        self._worker, self._recorder = args["model_instance_name"], Recorder()
        self._meter = PlayoutMeter(self._recorder)
        self._metrics = MetricsPublisher(self._recorder, self._measure)

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            try:
                status = Status.from_json(read_text(request, "LM_STATUS"))
                tokens = read(request, "TOKENS").tolist()
            except Exception as error:
                log.exception("not a message of speech_lm")
                reason = f"audio decoding failed: not a message of speech_lm ({type(error).__name__})"
                _send(
                    sender,
                    DecodedChunk("", np.zeros(0, np.int32), np.zeros(0, np.int16), Status("", 0, "failed", reason)),
                )
                continue
            self._service.submit(status, tokens, partial(self._reply, sender), request.is_cancelled)

    def finalize(self) -> None:
        self._metrics.close()
        self._service.close()

    def _reply(self, sender: pb_utils.InferenceResponseSender, chunk: DecodedChunk) -> None:
        """Send and measure; runs on the service's thread."""
        _send(sender, chunk)
        self._meter.chunk(chunk.status, len(chunk.pcm), bool(chunk.text), time.perf_counter())

    def _measure(self) -> None:
        stats, recorder, stage = self._service.stats(), self._recorder, "audio_decoder"
        recorder.set("vita_streams", stats.live_streams, stage=stage, state="running", worker=self._worker)
        recorder.set("vita_decoder_waiting_requests", stats.waiting_requests)
        recorder.total("vita_busy_ms_total", stats.busy_ms, stage=stage)
        recorder.total("vita_decoder_faults_total", stats.stop_errors, kind="stop")
        recorder.total("vita_decoder_faults_total", stats.reply_errors, kind="reply")
        for streams, count in stats.batches.items():
            recorder.total("vita_decoder_batches_total", count, streams=str(streams))
        for reason, count in stats.ended.items():
            recorder.total("vita_streams_ended_total", count, stage=stage, reason=reason)


def _send(sender: pb_utils.InferenceResponseSender, chunk: DecodedChunk) -> None:
    tensors = [
        text_tensor("TEXT_DELTA", chunk.text),
        pb_utils.Tensor("TOKENS", np.asarray(chunk.tokens, np.int32)),
        pb_utils.Tensor("PCM", np.asarray(chunk.pcm, np.int16)),
        text_tensor("STATUS", chunk.status.to_json()),
    ]
    sender.send(pb_utils.InferenceResponse(tensors), flags=FINAL if chunk.complete else 0)


def _tell(name: str, stream: str) -> None:
    """Tell speech_lm to end a stream (STOP), or that it is over (DONE); returns when it has taken note.

    Runs on the service's stop thread.
    """
    request = pb_utils.InferenceRequest(
        model_name="speech_lm", requested_output_names=[], inputs=[text_tensor(name, stream)]
    )
    for response in request.exec(decoupled=True):
        if response.has_error():
            raise RuntimeError(response.error().message())
