"""Command line: python -m training.data --config tiny --out DATA."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from training.data.generate import run
from training.data.settings import PRESETS
from vita_audio.contract.errors import VitaError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.data", description="Make a folder of training data.")
    parser.add_argument("--config", choices=list(PRESETS), default="small")
    parser.add_argument("--out", type=Path, required=True, help="the data folder; finished if it is there")
    parser.add_argument("--processes", type=int, default=None, help="synthesisers at once")
    options = parser.parse_args(arguments)
    console = Console(stderr=True, highlight=False)
    try:
        config = PRESETS[options.config]
        run(replace(config, processes=options.processes) if options.processes else config, options.out, console)
    except VitaError as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
