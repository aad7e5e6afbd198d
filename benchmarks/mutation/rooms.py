"""Which code is mutated, and which tests have to notice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Room:
    """A part of the tree.

    Args:
        code: files and folders that are mutated.
        tests: arguments of pytest, quick files first: the run of a mutant ends with the first failure.
    """

    name: str
    code: tuple[str, ...]
    tests: tuple[str, ...]


#: Tests that start a Triton server are left out: a run of minutes for each mutant.
ROOMS = (
    Room(
        "generation",
        ("vita_audio/generation",),
        (
            "tests/generation/test_stream.py",
            "tests/generation/test_deltas.py",
            "tests/generation/test_prompts.py",
            "tests/generation/test_service.py",
            "tests/generation/test_engines.py::test_golden_tokens[mctp4-13-onnxruntime]",
        ),
    ),
    Room(
        "decoding",
        ("vita_audio/decoding",),
        (
            "-k",
            "not torch",  # the golden tests run with ONNX Runtime alone
            "tests/decoding/test_schedule.py",
            "tests/decoding/test_served_stream.py",
            "tests/decoding/test_cancel_notifier.py",
            "tests/decoding/test_noise.py",
            "tests/decoding/test_flow_stream.py",
            "tests/decoding/test_service_failures.py",
            "tests/decoding/test_service_cancelling.py",
            "tests/decoding/test_stream.py",
            "tests/decoding/test_service.py",
            "tests/decoding/test_text.py",
            "tests/decoding/test_golden.py",
        ),
    ),
    Room("serving", ("serving",), ("tests/serving",)),
    Room("client", ("client/vita_client",), ("tests/client", "--ignore=tests/client/test_outbound.py")),
    Room("server", ("server",), ("-m", "not server", "tests/server")),
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
