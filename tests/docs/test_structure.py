"""Imports go one way (docs/structure.md): read from the source, so that a shortcut shows up here first."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Packages of Triton Inference Server; the compiler `triton` is another thing.
TRITON = ("triton_python_backend_utils", "tritonclient", "tritonserver", "pytriton")


def imported(path: Path) -> set[str]:
    """Dotted names of every module a file imports, at the top or inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def files(folder: str, *but: str) -> list[Path]:
    found = [p for p in (ROOT / folder).rglob("*.py") if not any(part in p.parts for part in but)]
    assert found, folder
    return found


@pytest.mark.parametrize(
    ("folder", "but", "forbidden"),
    [
        # The conformance command exports what it checks: the one place in vita_audio that looks up.
        ("vita_audio", ("conformance",), ("build_engines", "server", "vita_client", "training", *TRITON)),
        ("vita_audio/engines", (), ("vita_audio.generation", "vita_audio.decoding")),
        ("vita_audio/generation", (), ("vita_audio.decoding", "torch", "onnxruntime")),
        ("vita_audio/decoding", (), ("vita_audio.generation", "torch", "onnxruntime")),
        ("serving/metrics", (), ("vita_audio.engines", "vita_audio.decoding", "torch", "onnxruntime")),
        ("vita_audio/models", (), ("vita_audio.engines", "vita_audio.generation", "vita_audio.decoding")),
        ("client/vita_client", (), ("server", "build_engines", "training", "torch", "onnxruntime", "tokenizers")),
        ("server", (), ("torch", "training", "vita_client")),
        ("model_repository", (), ("torch", "training", "vita_client")),
        ("loadtest", (), ("server", "build_engines", "training", "torch", "onnxruntime")),
        ("build_engines", (), ("server", "vita_client", "training")),
    ],
)
def test_no_import_goes_upward(folder: str, but: tuple[str, ...], forbidden: tuple[str, ...]) -> None:
    wrong = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in files(folder, *but)
        for name in imported(path)
        if any(name == f or name.startswith((f + ".", f + "_")) for f in forbidden)
    }
    assert wrong == set()


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
