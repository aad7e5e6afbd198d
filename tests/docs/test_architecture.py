"""docs/architecture.md names files and functions that exist: `file::name`, and paths in backticks."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "architecture.md"


def defined(path: Path) -> set[str]:
    """Functions, classes and constants of a module, and as `Class.name` what its classes define."""

    def names(body: list[ast.stmt], prefix: str = "") -> set[str]:
        found: set[str] = set()
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                found.add(prefix + node.name)
                if isinstance(node, ast.ClassDef):
                    found |= names(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found |= {prefix + target.id for target in targets if isinstance(target, ast.Name)}
        return found

    return names(ast.parse(path.read_text(encoding="utf-8")).body)


def missing(page: str) -> list[str]:
    """References of a page that lead nowhere."""
    wrong = []
    for path, name in re.findall(r"`([\w./]+\.py)::([\w.]+)`", page):
        if not (ROOT / path).is_file():
            wrong.append(path)
        elif name not in defined(ROOT / path):
            wrong.append(f"{path}::{name}")
    for path in re.findall(r"`([\w.*]+(?:/[\w.*]+)*/?)`", page):
        if ("/" in path or path.endswith(".py")) and not list(ROOT.glob(path.rstrip("/"))):
            wrong.append(path)
    return wrong


def test_every_place_that_is_named_exists() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert missing(page) == []
    assert page.count(".py::") > 40
    assert len(page.splitlines()) <= 120


def test_every_step_says_where_it_happens() -> None:
    page = PAGE.read_text(encoding="utf-8")
    steps = re.split(r"^(?=\d+\. |- \*\*)", page, flags=re.MULTILINE)[1:]
    assert [step.splitlines()[0] for step in steps if ".py::" not in step] == []
    assert len(steps) > 20


def test_a_place_that_is_gone_is_found() -> None:
    modes = "vita_audio/contract/modes.py"
    gone = f"`{modes}::Mode.gone`, `vita_audio/gone.py::Mode`, `gone/`, `{modes}::parse_mode`"
    assert missing(gone) == [f"{modes}::Mode.gone", "vita_audio/gone.py", "gone/"]
