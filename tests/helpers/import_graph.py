"""What the files of the repository import, read from their source: by package, at the top of a module or anywhere."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Where the modules of the repository lie.
SOURCES = (ROOT, ROOT / "client", ROOT / "tests" / "helpers")


@cache
def imported(file: Path, *, nested: bool) -> tuple[str, ...]:
    """Dotted names of the modules that `file` imports; not those that only a type checker sees.

    Args:
        nested: also the imports inside functions, which run when they are called.
    """
    return tuple(_imported(file, nested))


def _imported(file: Path, nested: bool) -> Iterator[str]:
    waiting: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif nested or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            waiting += ast.iter_child_nodes(node)


@cache
def own_files(module: str) -> tuple[Path, ...]:
    """The files that run when `module` of this repository is imported, it and the packages around it; else none."""
    parts = module.split(".")
    for source in SOURCES:
        packages = [source.joinpath(*parts[: depth + 1], "__init__.py") for depth in range(len(parts))]
        found = [file for file in (*packages, source.joinpath(*parts).with_suffix(".py")) if file.is_file()]
        if found or source.joinpath(*parts).is_dir():
            return tuple(found)
    return ()


def is_ours(module: str) -> bool:
    """Whether `module` belongs to a package of this repository."""
    top = module.split(".")[0]
    return any((source / top).is_dir() or (source / top).with_suffix(".py").is_file() for source in SOURCES)


def packages(files: Iterable[Path], *, nested: bool = True) -> dict[str, Path]:
    """Top-level names of others' packages -> a file that imports them."""
    names = {name.split(".")[0]: file for file in files for name in imported(file, nested=nested)}
    return {name: file for name, file in names.items() if name not in sys.stdlib_module_names and not is_ours(name)}


def loaded(files: Iterable[Path]) -> set[Path]:
    """The files of this repository that importing `files` runs, themselves included."""
    done: set[Path] = set()
    waiting = list(files)
    while waiting:
        file = waiting.pop()
        if file not in done:
            done.add(file)
            waiting += (other for name in imported(file, nested=False) for other in own_files(name))
    return done


def python_files(*rooms: str) -> list[Path]:
    """Every Python file of folders, or the files that are named, relative to the repository."""
    found = [
        path for room in rooms for path in ([ROOT / room] if room.endswith(".py") else (ROOT / room).rglob("*.py"))
    ]
    assert found, rooms
    return found
