"""Imports go one way (docs/structure.md): read from the source, so that a shortcut shows up here first."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Packages of Triton Inference Server; the compiler `triton` is another thing.
TRITON = ("triton_python_backend_utils", "tritonclient", "tritonserver", "pytriton")
#: Each room and the rooms it may import, all of them above it; docs/structure.md says what each is for.
ROOMS: dict[str, tuple[str, ...]] = {
    "vita_audio": (),
    "client/vita_client": ("vita_audio",),
    "gateway": ("vita_audio", "client/vita_client"),
    "serving": ("vita_audio",),
    "model_repository": ("vita_audio", "serving"),
    "server": ("vita_audio", "serving"),
    "build_engines": ("vita_audio",),
    "training": ("vita_audio", "build_engines"),
    "loadtest": ("vita_audio", "client/vita_client"),
    "evaluation": ("vita_audio", "client/vita_client", "server", "training", "loadtest"),
    "benchmarks": ("vita_audio", "client/vita_client", "server", "build_engines", "loadtest"),
    "deploy": ("vita_audio", "server"),
    "examples": ("vita_audio", "client/vita_client", "server"),
}
#: What a part may not import: heavy packages where they are not needed, and parts beside it.
FORBIDDEN: dict[str, tuple[str, ...]] = {
    "vita_audio": TRITON,
    "vita_audio/contract": ("vita_audio.text", "vita_audio.checkpoint", "vita_audio.engines", "torch", "tokenizers"),
    "vita_audio/text": ("vita_audio.checkpoint", "vita_audio.engines", "torch"),
    "vita_audio/models": ("vita_audio.engines", "vita_audio.generation", "vita_audio.decoding"),
    "vita_audio/engines": ("vita_audio.generation", "vita_audio.decoding"),
    "vita_audio/generation": ("vita_audio.decoding", "torch", "onnxruntime"),
    "vita_audio/decoding": ("vita_audio.generation", "torch", "onnxruntime"),
    "serving/metrics": ("vita_audio.engines", "vita_audio.decoding", "torch", "onnxruntime"),
    "client/vita_client": (
        *("torch", "onnxruntime", "tokenizers"),
        *(f"vita_audio.{part}" for part in ("text", "checkpoint", "models", "engines", "generation", "decoding")),
    ),
    "gateway": (
        *("torch", "onnxruntime", "tokenizers", "grpc", *TRITON),
        *(f"vita_audio.{part}" for part in ("text", "checkpoint", "models", "engines", "generation", "decoding")),
    ),
    "server": ("torch",),
    "model_repository": ("torch",),
    "loadtest": ("torch", "onnxruntime"),
}


def files(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found, folder
    return found


def names(nodes: Iterator[ast.AST]) -> set[str]:
    """Dotted names of every module that import statements name."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def imported(path: Path) -> set[str]:
    """At the top or inside functions."""
    return names(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def imported_at_once(path: Path) -> set[str]:
    """When the module itself is imported: not inside functions, and not for type checkers only."""

    def walk(nodes: list[ast.stmt]) -> Iterator[ast.AST]:
        for node in nodes:
            yield node
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                yield from walk(node.orelse)
            elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from walk([child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)])

    return names(walk(ast.parse(path.read_text(encoding="utf-8")).body))


def module(path: Path) -> str:
    """The name a file is imported by."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    parts = parts[1:] if parts[0] == "client" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def file_imports() -> dict[str, set[str]]:
    """Module -> the modules of this repository it imports at once."""
    modules = {module(path): path for room in ROOMS for path in files(room)}
    return {name: (imported_at_once(path) & set(modules)) - {name} for name, path in modules.items()}


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Modules that import each other, in order; empty when there are none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_every_folder_with_code_is_in_the_table() -> None:
    tracked = {path.relative_to(ROOT).parts[0] for path in ROOT.glob("*/**/*.py")}
    inside = {name for name in tracked if (ROOT / name).is_dir() and not name.startswith((".", "tests"))}
    ignored = {"build", "dist", "out", "engines", "node_modules"}
    assert inside - ignored <= {room.partition("/")[0] for room in ROOMS}


def test_the_table_goes_one_way() -> None:
    rooms = list(ROOMS)
    for room, below in ROOMS.items():
        assert all(rooms.index(other) < rooms.index(room) for other in below), room


@pytest.mark.parametrize("room", ROOMS)
def test_no_import_goes_upward(room: str) -> None:
    packages = {other.rpartition("/")[2] for other in ROOMS if other != room and other not in ROOMS[room]}
    wrong = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in files(room)
        for name in imported(path)
        if name.partition(".")[0] in packages
    }
    assert wrong == set()


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_no_part_imports_what_it_should_not_know(folder: str) -> None:
    wrong = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in files(folder)
        for name in imported(path)
        if any(name == f or name.startswith((f + ".", f + "_")) for f in FORBIDDEN[folder])
    }
    assert wrong == set()


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = file_imports()
    assert sum(map(len, graph.values())) > 500  # imports are still found
    assert circle(graph) == []


def test_a_circle_would_be_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": set[str]()}
    assert circle(graph) == []
    assert sorted(set(circle({**graph, "c": {"a"}}))) == ["a", "b", "c"]


def test_serving_and_client_load_without_pytorch() -> None:
    """What the model processes and the client import must not pull in the heavy extras."""
    code = """
import sys
import server.launch, vita_client, serving.warm_up, serving.prompt_stage, vita_audio.engines.manifest
import vita_audio.engines.onnxruntime.language_model, vita_audio.engines.onnxruntime.audio
import vita_audio.generation.service, vita_audio.decoding.service, vita_audio.text.tokenizer
print(sorted({"torch", "onnx", "safetensors"} & set(sys.modules)))
"""
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'client'}", "PATH": ""}
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert made.stdout.strip() == "[]"
