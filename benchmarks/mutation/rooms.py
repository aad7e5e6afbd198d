"""Which code is mutated, and which tests have to notice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Room:
    """A part of the tree.

    Args:
        code: files and folders that are mutated.
        runs: arguments of pytest, one run after the other, quick ones first; the first failure ends them. What a run
            imports it imports before its first test: those without PyTorch have one of their own.
    """

    name: str
    code: tuple[str, ...]
    runs: tuple[tuple[str, ...], ...]


def _files(folder: str, *names: str) -> tuple[str, ...]:
    return tuple(f"tests/{folder}/test_{name}.py" for name in names)


#: Tests that start a Triton server are left out: a run of minutes for each mutant. Of those that
#: every engine has to pass, the ones of ONNX Runtime are run.
ROOMS = (
    Room(
        "generation",
        ("vita_audio/generation",),
        (
            _files("generation", "stream", "deltas", "content_keys"),
            (
                *("-k", "not torch"),
                *_files("generation", "pulse", "prompts", "service", "prefix_cache", "embedded"),
                "tests/generation/test_engines.py::test_golden_tokens_of_prompts_in_small_chunks[mctp4-onnxruntime]",
            ),
        ),
    ),
    Room(
        "decoding",
        ("vita_audio/decoding",),
        (
            _files(
                "decoding",
                *("schedule", "served_stream", "cancel_notifier", "flow_stream", "noise", "seams", "stream_buffers"),
                *("pulse", "service_failures", "service_cancelling", "service_overlap", "stream", "service"),
            ),
            ("-k", "not torch", *_files("decoding", "text", "golden")),
        ),
    ),
    Room("serving", ("serving",), (("tests/serving",),)),
    Room("client", ("client/vita_client",), (("tests/client", "--ignore=tests/client/test_outbound.py"),)),
    Room("server", ("server",), (("-m", "not server", "tests/server"),)),
)


def room_of(path: str, rooms: Sequence[Room] = ROOMS) -> Room:
    """The room of a file of the repository.

    Raises:
        ValueError: no room has it.
    """
    for room in rooms:
        if any(path == code or path.startswith(f"{code}/") for code in room.code):
            return room
    raise ValueError(f"{path} is in no room: add it to benchmarks/mutation/rooms.py")
