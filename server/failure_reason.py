"""The line of a Triton log that says best why a server did not start."""

from __future__ import annotations

import re
from pathlib import Path

from server.log_file import written_since

#: What the log says of a model that did not load: "... failed to load 'prompt' version 1: Internal: EngineError: ...".
_LOAD_FAILURE = re.compile(r"failed to load '([^']+)' version \d+: (.+)")
#: Begins the places in our sources that a reason ends with; Triton escapes its line breaks.
_TRACE = r"\n\nAt:"
#: Any error line of the log, without level, time and source file.
_ERROR_LINE = re.compile(r'^E\d{4} [\d:.]+ \d+ [\w.]+:\d+\] "?(.+?)"?$', re.MULTILINE)
#: What is no reason: lines that are not errors, tables, and a complaint of every start without a GPU.
_NO_REASON = re.compile(r"[IWV]\d{4} [\d:.]+ |[|+]|.*CudaDriverHelper has not been initialized")
#: Triton's words for a model process that is gone, whatever ended it: anything else says more.
_ENDED = re.compile(r"Stub process .* is not healthy")
#: What Triton says next, of all models: as little.
_FOLLOWS = re.compile(r"ensemble '.*' depends on|failed to load all models")


def failure_reason(log_file: Path, begin: int = 0, loss: str = "") -> str:
    """One line, from what was written behind the byte `begin`.

    Args:
        loss: which process has ended. A model that says itself why it did not load is the better reason.
    """
    log = written_since(log_file, begin)
    lines = [line for line in log.splitlines() if line.strip() and not _NO_REASON.match(line)]
    text = "\n".join(lines)
    models = _models_not_loaded(text)
    if models and not _ENDED.search(models):
        return models
    if ended := [name for name, reason in _LOAD_FAILURE.findall(text) if _ENDED.search(reason)]:
        loss = f"the process of model {ended[0]} ended while it loaded"  # others end with Triton, which gives up
    words = [*reversed(_ERROR_LINE.findall(text)), *reversed(lines)]
    said = (line for line in words if not _ENDED.search(line) and not _FOLLOWS.search(line))
    best = next(said, models or next(iter(words), _nothing(log)))
    return f"{loss}{': ' * bool(loss)}{' '.join(best.split())}"


def _models_not_loaded(log: str) -> str:
    """The models that failed, those with the same reason together."""
    failed: dict[str, list[str]] = {}  # reason -> models
    for name, reason in _LOAD_FAILURE.findall(log):
        reason = reason.partition(_TRACE)[0]
        models = failed.setdefault(" ".join(reason.strip().strip('"').split()), [])
        if name not in models:
            models.append(name)
    return "; ".join(
        f"model{'s' * (len(models) > 1)} {', '.join(models)} did not load: {reason}"
        for reason, models in failed.items()
    )


def _nothing(log: str) -> str:
    return "its log names no reason" if log.strip() else "it wrote no log"
