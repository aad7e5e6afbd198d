"""`python -m build_engines.conformance DIR`: every golden case in DIR through the reference and every engine here."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import torch
from rich.console import Console
from rich.table import Table

from build_engines.conformance.audio import check_flow, check_speech_tokenizer, check_vocoder
from build_engines.conformance.language_model import check_interleaving, check_language_model
from build_engines.conformance.language_model_cases import Mistake
from build_engines.conformance.plus import check_plus
from build_engines.conformance.result import Result

#: A file that marks a case, and the check to run on the file's folder (or on the file itself).
CHECKS: dict[str, Callable[[Path], Iterator[Result]]] = {
    "greedy_tokens.json": lambda path: check_language_model(path.parent),
    "frontend_io.safetensors": lambda path: check_plus(path.parent),
    "interleaving.json": check_interleaving,
    "speech_tokenizer_io.safetensors": lambda path: check_speech_tokenizer(path.parent),
    "flow_io.safetensors": lambda path: check_flow(path.parent),
    "hift_io.safetensors": lambda path: check_vocoder(path.parent),
}


def run_checks(folder: Path, mistake: Mistake | None = None) -> Iterator[Result]:
    """All results of the cases below `folder`; a case that cannot be run is a failed result, not an exception.

    Args:
        mistake: run prompts with speech alone, and make it: they have to fail.
    """
    checks = CHECKS
    if mistake:
        checks = {"prompt_io.safetensors": lambda path: check_language_model(path.parent, mistake)}
    for path in sorted(p for p in folder.rglob("*") if p.name in checks):
        try:
            yield from checks[path.name](path)
        except Exception as error:  # noqa: BLE001 - the other cases must still be run and reported
            fault = str(error).splitlines()[0] if str(error) else "no message"
            yield Result(str(path.relative_to(folder)), "-", f"{type(error).__name__}: {fault}", False)


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 0 when every case passes, 1 when one fails, 2 when there is nothing to run."""
    parser = argparse.ArgumentParser(prog="python -m build_engines.conformance", description=__doc__)
    parser.add_argument("folder", type=Path, help="golden data, or a folder in its layout (tests/golden)")
    parser.add_argument("--failures", action="store_true", help="print failed cases only")
    parser.add_argument(
        "--mistake",
        choices=get_args(Mistake),
        help="controls of the Plus data: leave speech out of prompts, or have MCTP modules read it; cases must fail",
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the cases are tiny: threads would only wait for each other
    console = Console(width=None if sys.stdout.isatty() else 150)
    if not options.folder.is_dir():
        console.print(f"{options.folder}: no such folder", style="red")
        return 2
    table = Table("case", "implementation", "worst error or first differing token", "result")
    passed = failed = 0
    for result in run_checks(options.folder, options.mistake):
        passed, failed = passed + result.passed, failed + (not result.passed)
        if not (options.failures and result.passed):
            verdict = "[green]pass[/]" if result.passed else "[red]FAIL[/]"
            table.add_row(
                *(cell.replace("[", r"\[") for cell in (result.case, result.implementation, result.detail)), verdict
            )
    if passed + failed == 0:
        console.print(f"{options.folder}: no case found; looked for {', '.join(CHECKS)}", style="red")
        return 2
    console.print(table)
    console.print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
