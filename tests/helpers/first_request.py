"""Opens a stage as its model process does, sends it one request, and prints the modules which that imported, as JSON.

python first_request.py STAGE, with VITA_ENGINES and VITA_SECRET in the environment. Run by a test, in a process that
has imported nothing else. The stub's own part is its import of asyncio (docs/triton.md).
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

SPEECH = np.full(24_000, 0.1, np.float32)


def _heartbeats() -> Any:
    return importlib.import_module("serving.heartbeat").Heartbeats()


def prompt() -> Callable[[], Any]:
    stage = importlib.import_module("serving.prompt_stage").PromptStage.serve("", lambda speech: [0], _heartbeats())
    return lambda: [stage.prepare(each) for each in ({"TEXT": "Hi"}, {"AUDIO": SPEECH, "SAMPLE_RATE": 48_000})]


def speech_tokenizer() -> Callable[[], Any]:
    stage = importlib.import_module("serving.speech_tokenizer_stage").SpeechTokenizerStage(_heartbeats())
    return lambda: stage.read(SPEECH)


def speech_lm() -> Callable[[], Any]:
    stage = importlib.import_module("serving.speech_lm_stage").SpeechLmStage.serve("", _heartbeats())
    messages = importlib.import_module("vita_audio.contract.messages")
    settings = messages.GenerationSettings("chat", "boost", (1, 10, 4, 10), 30, 0.8, 50, 0.9, 1.1, 0)
    return lambda: _wait(lambda end: stage.accept(messages.Start(settings, [1] * 20), lambda m, _: end(_is_final(m))))


def audio_decoder() -> Callable[[], Any]:
    stage = importlib.import_module("serving.audio_decoder_stage").AudioDecoderStage.serve(
        "", lambda _: None, _heartbeats()
    )
    messages = importlib.import_module("vita_audio.contract.messages")
    manifest = importlib.import_module("vita_audio.engines.manifest").load_manifest(Path(os.environ["VITA_ENGINES"]))
    codes = manifest.vocabulary.audio_ids([0] * 20)
    delta = messages.Delta(messages.Status("s", 0, "done", "", "chat", "boost", 0, {"lm": 1.0}), [*codes, 1])
    return lambda: _wait(lambda end: stage.accept(lambda: delta, lambda chunk: end(chunk.complete), lambda: False))


def _is_final(message: Any) -> bool:
    return message is not None and hasattr(message, "status") and message.status.final


def _wait(start: Callable[[Callable[[bool], Any]], None]) -> None:
    ended = threading.Event()
    start(lambda over: ended.set() if over else None)
    assert ended.wait(60)


if __name__ == "__main__":
    stub: Any = ModuleType("triton_python_backend_utils")
    for name in (
        "InferenceRequest",
        "InferenceResponse",
        "InferenceResponseSender",
        "Tensor",
        "MetricFamily",
        "Metric",
    ):
        setattr(stub, name, type(name, (), {}))
    stub.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    sys.modules[stub.__name__] = stub
    importlib.import_module("serving.adapter")
    request = globals()[sys.argv[1]]()
    before = set(sys.modules)
    request()
    importlib.import_module("asyncio")
    print(json.dumps(sorted(set(sys.modules) - before)), flush=True)
    os._exit(0)  # the threads of a stage that was not closed
