"""Every package that is imported is declared for those who import it, and client and server stay light."""

from __future__ import annotations

import re
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import tomllib

from import_graph import ROOT, imported, loaded, packages, python_files

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CLIENT = tomllib.loads((ROOT / "client" / "pyproject.toml").read_text())["project"]
#: Distributions of packages that may not be installed here. `triton_python_backend_utils` comes with tritonserver.
DISTRIBUTIONS = {
    "tensorrt_llm": "tensorrt-llm",
    "tensorrt": "tensorrt",
    "sounddevice": "sounddevice",
    "triton": "triton",
    "tensorrt_rtx": "tensorrt-rtx-cu13",
    "tensorrt_rtx_libs": "tensorrt-rtx-cu13",
    "triton_python_backend_utils": "nvidia-pytriton",
}
#: TensorRT-LLM's own sources import it; the dry run puts a stand-in there.
NOT_INSTALLED = {"transformers"}
#: Scripts that run in environments of their own (`make clients`).
APART = [ROOT / "tests" / "clients" / f"{file.stem}.py" for file in (ROOT / "tests/clients/requirements").glob("*.txt")]

LIGHT = (
    *("vita_audio/contract", "vita_audio/text", "vita_audio/generation", "vita_audio/decoding"),
    *("vita_audio/engines/onnxruntime", "vita_audio/speech_features.py", "vita_audio/stopping.py"),
    *("serving", "server", "model_repository"),
)
#: Of tests and of what is only run where all of this is installed.
EVERY = ("serve", "build", "train", "evaluation", "loadtest", "gateway", "mutation", "test", "gpu-check")


def named(requirements: list[str]) -> set[str]:
    """Names of distributions, in their normal form."""
    return {re.sub(r"[-_.]+", "-", re.split(r"[\[<>=;~! ]", line)[0]).lower() for line in requirements}


def base() -> list[str]:
    lines = (ROOT / "client" / "requirements.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def declared(*extras: str) -> set[str]:
    """What an installation with these extras brings: its own list, not what that brings in turn."""
    optional = PROJECT["optional-dependencies"]
    return named([*base(), *(line for extra in extras for line in optional[extra])])


def missing(files: list[Path], *extras: str, nested: bool = True) -> dict[str, str]:
    """Imports that those extras do not declare -> a file."""
    known, have = packages_distributions(), declared(*extras)
    return {
        name: str(file.relative_to(ROOT))
        for name, file in packages(files, nested=nested).items()
        if name not in NOT_INSTALLED and not have & named([DISTRIBUTIONS.get(name, ""), *known.get(name, [])])
    }


@pytest.mark.parametrize(
    ("rooms", "extras"),
    [
        (("client/vita_client", "vita_audio/contract"), ("play",)),
        (LIGHT, ("serve",)),
        (("examples",), ("serve",)),
        (("vita_audio", "build_engines"), ("build", "gpu", "gpu-check", "test")),
        (("training",), ("train",)),
        (("evaluation",), ("train", "evaluation")),
        (("gateway",), ("gateway",)),
        (("loadtest",), ("loadtest",)),
        (("benchmarks",), ("serve", "build", "loadtest", "gateway", "mutation", "test", "gpu-check")),
        (("tests", "deploy"), EVERY),
    ],
    ids=lambda value: value[0],
)
def test_what_is_imported_is_declared(rooms: tuple[str, ...], extras: tuple[str, ...]) -> None:
    assert missing([file for file in python_files(*rooms) if file not in APART], *extras) == {}


@pytest.mark.parametrize(
    ("rooms", "extras"),
    [
        (("client/vita_client",), ()),
        (LIGHT, ("serve",)),
        (("build_engines/packaged.py", "examples"), ("serve",)),
        (("build_engines/__main__.py", "build_engines/conformance"), ("build",)),
        (("training/__main__.py",), ("train",)),
        (("gateway/__main__.py",), ("gateway",)),
        (("loadtest/__main__.py",), ("loadtest",)),
    ],
    ids=lambda value: value[0] if value else "base",
)
def test_a_command_starts_with_its_extras_alone(rooms: tuple[str, ...], extras: tuple[str, ...]) -> None:
    """What runs on import, through all modules of this repository that are imported on the way."""
    files = sorted(loaded(python_files(*rooms)))
    assert missing(files, *extras, nested=False) == {}


def test_client_and_server_load_neither_pytorch_nor_exporters() -> None:
    client = loaded(python_files("client/vita_client"))
    served = loaded(python_files(*LIGHT))
    heavy = {"torch", "onnx", "onnxscript", "tensorrt", "tensorrt_llm", "triton"}
    assert not heavy & packages(served, nested=False).keys()
    assert not (heavy | {"onnxruntime", "tokenizers"}) & packages(client, nested=False).keys()
    assert {path.relative_to(ROOT).parts[:2] for path in client} == {
        ("client", "vita_client"),
        ("vita_audio", "contract"),
    }


def test_the_lists_of_client_and_project_agree() -> None:
    assert CLIENT["dynamic"] == PROJECT["dynamic"] == ["dependencies"]
    assert CLIENT["optional-dependencies"]["play"] == PROJECT["optional-dependencies"]["play"]
    assert CLIENT["scripts"].items() <= PROJECT["scripts"].items()
    assert CLIENT["version"] == PROJECT["version"]
    assert all(re.fullmatch(r"[a-z]+(\[grpc\])?>=[\d.]+", line) for line in base())


def test_the_imports_are_all_seen(tmp_path: Path) -> None:
    source = """
import a.b
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import types_only
else:
    import at_runtime
try:
    from c import d
except ImportError:
    import e
class K:
    import f
def g():
    import h
"""
    (tmp_path / "module.py").write_text(source)
    top = {name.split(".")[0] for name in imported(tmp_path / "module.py", nested=False)}
    assert top == {"a", "typing", "at_runtime", "c", "e", "f"}
    assert {name.split(".")[0] for name in imported(tmp_path / "module.py", nested=True)} == top | {"h"}
