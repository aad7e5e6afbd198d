"""`python -m vita_audio.contract` prints the request fields and outputs as Markdown, as README.md has them.

With `--write` it brings what must repeat the table up to date: README.md, docs/conversations.md (what means something
only among several turns), and the inputs of the models `prompt` and `vita_audio` in their config.pbtxt.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from vita_audio.contract.fields import ENSEMBLE, INPUTS, OUTPUTS, Field, Output

ROOT = Path(__file__).resolve().parents[2]


def markdown(of_conversations: bool = False) -> str:
    """Two tables: inputs, outputs; of conversations, or all others."""
    lines = ["| input | type | range | default | |", "|---|---|---|---|---|"]
    lines += [
        f"| `{field.name}` | {_type(field)} | {field.range_text()} | {field.default_text()} "
        f"| {'; '.join(part for part in (field.help, field.note, field.task_text()) if part)} |"
        for field in INPUTS
        if field.of_conversations == of_conversations
    ]
    lines += ["", "| output | type | |", "|---|---|---|"]
    lines += [
        f"| `{output.name}` | {_type(output)} | {output.help} |"
        for output in OUTPUTS
        if output.of_conversations == of_conversations
    ]
    return "\n".join(lines)


def _type(tensor: Field | Output) -> str:
    return tensor.datatype + ("[n]" if tensor.shape == (-1,) else "")


def with_table(page: str, of_conversations: bool = False) -> str:
    """A page with the table between its two marks."""
    table = markdown(of_conversations)
    return _replaced(r"(?<=<!-- fields -->\n).*?(?=<!-- /fields -->)", table + "\n", page)


def with_inputs(config: str) -> str:
    """A config.pbtxt with the public inputs; in an ensemble they also go to the step of `prompt`."""
    rows = (
        f'  {{ name: "{field.name}", data_type: TYPE_{field.datatype}, dims: [ {field.shape[0]} ], optional: true }}'
        for field in INPUTS
    )
    config = _replaced(r"(?<=^input \[\n).*?(?=^\])", ",\n".join(rows) + "\n", config)
    if "ensemble_scheduling" in config:
        maps = (f'      input_map {{ key: "{field.name}" value: "{field.name}" }}\n' for field in INPUTS)
        config = _replaced(r'^      input_map \{ key: "TEXT".*?(?=^      output_map)', "".join(maps), config)
    return config


def _replaced(pattern: str, text: str, whole: str) -> str:
    """`whole` with the first match of `pattern` replaced."""
    return re.sub(pattern, lambda match: text, whole, count=1, flags=re.DOTALL | re.MULTILINE)


def repeated(root: Path = ROOT) -> Iterable[tuple[Path, Callable[[str], str]]]:
    """The files that repeat the table, and how each is brought up to date."""
    yield root / "README.md", with_table
    yield root / "docs" / "conversations.md", partial(with_table, of_conversations=True)
    for config in ("prompt/config.pbtxt", f"{ENSEMBLE}/config.pbtxt", f"{ENSEMBLE}/configs/one_process.pbtxt"):
        yield root / "model_repository" / config, with_inputs


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vita_audio.contract", description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="bring the pages and the models' config.pbtxt up to date")
    if not parser.parse_args().write:
        print(markdown())
        return
    for path, renewed in repeated():
        path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
