"""The GPU language Triton (no relation to the inference server), or stand-ins where it is not installed.

A file with a kernel is imported everywhere, since its reference is beside it; only a launch needs the language.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

#: Whether kernels can be launched; a machine without it runs the references.
INSTALLED = find_spec("triton") is not None

if TYPE_CHECKING or INSTALLED:
    import triton
    import triton.language as tl
else:

    class _Absent:
        """Decorates a kernel that cannot be launched."""

        @staticmethod
        def jit(function: Callable[..., Any] | None = None, **options: Any) -> Callable[..., Any]:
            return function or (lambda kernel: kernel)

    triton, tl = _Absent(), None

__all__ = ["INSTALLED", "tl", "triton"]
