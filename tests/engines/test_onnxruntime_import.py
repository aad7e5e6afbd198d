"""ONNX Runtime is imported in one package only, which turns its telemetry off before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from import_graph import ROOT, imported, python_files

PACKAGE = ROOT / "vita_audio" / "engines" / "onnxruntime"
ROOMS = ("vita_audio", "client", "serving", "model_repository", "server", "build_engines", "training", "evaluation")
#: Imports it as any program might, prints the variable, and whether the import left something in the home folder.
PROGRAM = """
import os, pathlib, {module}
print(os.environ.get("ORT_DISABLE_TELEMETRY"), len(list(pathlib.Path.home().rglob("*"))))
"""


def importers() -> set[Path]:
    files = python_files(*ROOMS, "loadtest", "benchmarks", "deploy", "examples", "tests")
    by_statement = {
        file for file in files if any(n.split(".")[0] == "onnxruntime" for n in imported(file, nested=True))
    }
    by_call = {
        file
        for file in files
        if any(f'{call}("onnxruntime' in file.read_text() for call in ("import_module", "importorskip", "__import__"))
    }
    return by_statement | by_call - {Path(__file__)}


def test_nothing_imports_it_another_way() -> None:
    found = importers()
    assert PACKAGE / "session.py" in found
    assert {file.relative_to(ROOT) for file in found if PACKAGE not in file.parents} == set()


def import_in_an_empty_home(module: str, home: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "HOME")}
    command = [sys.executable, "-c", PROGRAM.format(module=module)]
    environment |= {"HOME": str(home), "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def test_its_telemetry_is_off(tmp_path: Path) -> None:
    # Without the variable the import writes a device id there, sooner or later: a thread of its own does it.
    assert import_in_an_empty_home("vita_audio.engines.onnxruntime.session", tmp_path) == "1 0"
