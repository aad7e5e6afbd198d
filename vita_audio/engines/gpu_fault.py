"""Whether a process has lost its GPU: after a kernel's fault, or that of another client of its MPS server, CUDA answers
every later call of the process with the same error, and only a new process has a GPU again.
"""

from __future__ import annotations

import sys


def gpu_is_lost(error: BaseException) -> bool:
    """Whether CUDA is what failed with `error`, and still fails. A process without PyTorch's CUDA has none to lose."""
    torch = sys.modules.get("torch")
    if torch is None or "CUDA" not in str(error) or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
