"""Triton's interpreter without a large part of its cost: it redefines the language at each call of a device function.

Also a plugin of pytest (`-p triton_interpreter`).
"""

from __future__ import annotations

from typing import Any

from triton.runtime import interpreter


def define_once() -> None:
    """From now on each device function redefines the language at its first call only.

    Such definitions stay; those of a kernel are made again at each launch, before anything inside it runs.
    """
    defined: set[object] = set()

    def call(function: Any, *arguments: object, **named: object) -> object:
        if function.fn not in defined:
            interpreter._patch_lang(function.fn)
            defined.add(function.fn)
        return function.rewrite()(*arguments, **named)

    interpreter.InterpretedFunction.__call__ = call


def pytest_configure() -> None:
    define_once()
