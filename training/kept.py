"""What the first run of a training settled, in `OUT/config.json`: later ones go on with it or are refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from training.config import TrainingConfig, load_config
from training.errors import TrainingError
from training.files import whole_file
from training.run import differences

_FILE = "config.json"
_SHOWN = 10
#: Cannot change results: when something is shown or kept, what computes, what the card says.
_FREE = {"log_every", "save_every", "evaluate_every", "processes", "workers", "compile", "device", "name", "about"}


def load_kept(name: str, changes: Sequence[str], out: Path) -> tuple[TrainingConfig, list[str]]:
    """The configuration for the training in `out`, and all its changes: those of the first run come before `changes`.

    Raises:
        TrainingError: as `load_config`; or what decides results differs from the first run, every key named.
    """
    path = out / _FILE
    if not path.exists():
        return load_config(name, changes), list(changes)
    there = json.loads(path.read_text(encoding="utf-8"))
    changes = [*(change for change in there["changes"] if change not in changes), *changes]
    config = load_config(name, changes)
    if lines := differences(_results(there["config"]), _results(_plain(config))):
        more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        raise TrainingError(
            f"{out}: was begun with other settings (--config {there['name']}); leave them, or choose another --out:\n  "
            + "\n  ".join([*lines[:_SHOWN], *more])
        )
    return config, changes


def keep_config(name: str, changes: Sequence[str], config: TrainingConfig, out: Path) -> None:
    """Write what `load_kept` reads, unless it is there. Raises TrainingError when it cannot be written."""
    if (out / _FILE).exists():
        return
    with whole_file(out / _FILE) as path:
        record = {"name": name, "changes": list(changes), "config": _plain(config)}
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _plain(config: TrainingConfig) -> dict[str, Any]:
    """As JSON has it: no tuples."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain


def _results(values: Mapping[str, Any], before: str = "") -> dict[str, object]:
    """What results depend on, by keys as --set takes them."""
    found: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= _results(value, f"{before}{key}.")
        elif key not in _FREE:
            found[before + key] = value
    return found
