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

#: Compute capability from which a kernel may begin before the one ahead of it has ended.
DEPENDENT_LAUNCH = 90


def launch_options(pdl: bool) -> dict[str, bool]:
    """Of a launch, for programmatic dependent launch; the kernel is compiled with `PDL=pdl`."""
    return {"launch_pdl": True} if pdl else {}


@triton.jit
def wait_for_previous(PDL: tl.constexpr):
    """Every block calls it before it reads what a kernel made, or writes anything. What no kernel of a program writes
    may be read earlier: weights, tables, and the inputs of the program but for its ids.

    A block that returns without it would let the kernel after this one begin before the one ahead has ended.
    """
    if PDL:
        tl.extra.cuda.gdc_wait()


@triton.jit
def launch_next(PDL: tl.constexpr):
    """The kernel after this one may take its place on the GPU; it still waits for the end of this one."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()


def power_of_two(size: int) -> int:
    """The smallest power of two that is at least `size`: blocks of the language have no other sizes."""
    return 1 << (size - 1).bit_length()


def warps(elements: int) -> int:
    """Of a block that goes over `elements` numbers once: about eight for each thread."""
    return max(1, min(8, elements // 256))
