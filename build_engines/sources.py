"""The code that a build stage depends on, found by its imports, so that no list of files has to be kept by hand.

A stage's code is its own module and every module of this repository that is imported from there, directly or not; what
it takes from outside are packages, which count by their versions. Import statements inside functions count, those
under `if TYPE_CHECKING:` do not; a comment, a docstring or another layout of a file is no change.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import packages_distributions
from importlib.util import resolve_name
from pathlib import Path

from vita_audio.engines.manifest import package_version

#: Packages of the commands' faces: no file of a build depends on them.
_FACES = {"rich", "typer"}
#: Where the packages of this repository lie.
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Code:
    """What a module comes to. `files`: path in the repository -> hash. `packages`: import names from outside."""

    files: dict[str, str]
    packages: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Module:
    sha256: str
    imports: frozenset[str]


def code_of(module: str, root: Path | None = None) -> Code:
    """The code of a module and of all that it imports.

    Args:
        module: dotted name.
        root: the repository; None is this one.
    """
    root = root or ROOT
    files: dict[str, str] = {}
    packages: set[str] = set()
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        parent, _, _ = name.rpartition(".")
        if path := _file(name, root):
            changed = path.stat().st_mtime_ns
            found = _parsed(path, changed, name if path.name == "__init__.py" else parent)
            files[path.relative_to(root).as_posix()] = found.sha256
            waiting += found.imports
        elif not (root / name.partition(".")[0]).is_dir():
            packages.add(name.partition(".")[0])
        if parent:  # its __init__ runs too
            waiting.append(parent)
    return Code(files, frozenset(packages - sys.stdlib_module_names - _FACES))


def versions_of(packages: frozenset[str]) -> dict[str, str]:
    """Distribution -> installed version of import names, "none" for what is not installed."""
    names = {name for package in packages for name in _distributions().get(package, [package])}
    return {name: package_version(name) for name in sorted(names)}


@cache
def _distributions() -> dict[str, list[str]]:
    return dict(packages_distributions())


def _file(module: str, root: Path) -> Path | None:
    path = root.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@cache
def _parsed(path: Path, changed_ns: int, package: str) -> _Module:
    """`changed_ns` keeps apart the states of a file."""
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            del node.body[: ast.get_docstring(node, clean=False) is not None]
    return _Module(hashlib.sha256(ast.dump(tree).encode()).hexdigest(), frozenset(_imports(tree, package)))


def _imports(node: ast.AST, package: str) -> Iterator[str]:
    """Names that may be modules: of `from a import b` both a and a.b."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        source = resolve_name("." * node.level + (node.module or ""), package)
        yield source
        yield from (f"{source}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        for other in node.orelse:
            yield from _imports(other, package)
    else:
        for child in ast.iter_child_nodes(node):
            yield from _imports(child, package)
