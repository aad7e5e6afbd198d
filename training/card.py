"""The card of a trained checkpoint (its README.md), written from the records of the training."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from training.config import TrainingConfig
from training.init_from import AUDIO_PARTS, CONTINUED, RECORDS, STAGE_PARTS, InitFrom
from training.language_model import prepare
from training.logs import duration
from vita_audio.checkpoint.check import CheckpointSizes

#: The report of `evaluation` below the training's folder; goes on the card when it is there.
SCORES = Path("evaluation") / "evaluation.md"
#: In the record of a part that went on with a finished network: the record of what made that.
_BEFORE = "before"
#: The samples the language model was last trained on, in the records.
_SAMPLES = "tokens"


def write_card(
    config: TrainingConfig, init: InitFrom, out: Path, checkpoint: Path, sizes: CheckpointSizes, command: str
) -> None:
    """Write `checkpoint/README.md` (what it is, how it was made, what it scored) and its records, `training.json`.

    Raises:
        OSError: it cannot be written.
    """
    parts = records_of(init, out)
    samples = parts.pop(_SAMPLES)
    runs = [run for record in parts.values() for run in _runs(record)]
    started = f"\nStarted from {init}.\n" if init.checkpoint else ""
    language_model, speech_tokenizer = sizes.language_model, sizes.speech_tokenizer
    assert speech_tokenizer is not None, "Plus checkpoints are not trained here"
    size_mb = sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file()) / 1e6
    text = f"""# {config.name}

{config.about.strip()}

## What it is

A complete VITA-Audio checkpoint in the released layout, {size_mb:.1f} MB:

| part | size |
|---|---|
| language model | {language_model.backbone_layers} backbone layers + {language_model.mctp_modules} MCTP modules, \
{language_model.hidden_size} wide, {language_model.vocab_size} tokens, {config.language_model.dtype} |
| speech tokenizer | {speech_tokenizer.layers} layers, {speech_tokenizer.d_model} wide, \
{speech_tokenizer.quantize_vocab_size} codes at 12.5 Hz |
| flow | {sizes.flow.encoder_blocks} encoder blocks, estimator {sizes.flow.channels} |
| vocoder | {sizes.vocoder.base_channels} channels, {sizes.vocoder.sampling_rate} Hz |

Default mode: {config.language_model.mode}, which it was trained for; other modes run, with the quality shown below.

## Data and licence

Generated: sentences, questions and answers from word lists, spoken by Debian's flite (Carnegie Mellon University's
permissive licence; output voice {config.data.output_voice}, input voices {", ".join(config.data.input_voices)}). \
No human recordings.
The weights have the licence of this repository.

Samples of the language model's last training:

{_samples_table(samples)}

## How it was made

    {command}
{started}
Machine: {"; ".join(sorted({run["machine"] for run in runs}))}.

| part | steps | time | held-out, at the end |
|---|---|---|---|
{_parts_table(parts)}

All parts together: {duration(sum(run["elapsed_s"] for run in runs))}, without making the data.

## Scores

{_scores(out / SCORES)}
"""
    (checkpoint / "README.md").write_text(text, encoding="utf-8")
    (checkpoint / RECORDS).write_text(json.dumps({**parts, _SAMPLES: samples}, indent=1) + "\n", encoding="utf-8")


def is_current(init: InitFrom, out: Path, checkpoint: Path) -> bool:
    """Whether `checkpoint` was written from the trainings that `out` holds now."""
    try:
        return bool(json.loads((checkpoint / RECORDS).read_text(encoding="utf-8")) == records_of(init, out))
    except (OSError, ValueError):
        return False


def records_of(init: InitFrom, out: Path) -> dict[str, dict[str, Any]]:
    """What every part recorded, earlier training runs of a network that was continued included.

    Raises:
        OSError: a part is not done.
        ValueError: a record is no JSON.
    """
    records = init.records(out)
    trained = [name for name in AUDIO_PARTS if init.trains(name)]
    if init.trains("language_model"):
        records[_SAMPLES] = _read(out / "tokens" / prepare.RECORD)
        trained += STAGE_PARTS[-1:] if init.starts["language_model"] == CONTINUED else STAGE_PARTS
    for name in trained:
        before = records.get(name) if init.starts.get(name, init.starts["language_model"]) == CONTINUED else None
        records[name] = {**_read(out / name / "done.json"), **({_BEFORE: before} if before else {})}
    return {name: records[name] for name in (*AUDIO_PARTS, *STAGE_PARTS, _SAMPLES)}


def _read(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


def _runs(record: dict[str, Any]) -> list[dict[str, Any]]:
    """A part's record after those of the training runs it went on with."""
    return [*_runs(record[_BEFORE]), record] if _BEFORE in record else [record]


def _scores(report: Path) -> str:
    """The report with its headings below the card's, without its picture, which stays with the report."""
    if not report.exists():
        return "Not evaluated yet: `python -m evaluation`."
    text = re.sub(r"^!\[.*\n\n?", "", report.read_text(encoding="utf-8").strip(), flags=re.MULTILINE)
    return re.sub(r"^#", "###", text, flags=re.MULTILINE)


def _samples_table(tokens: dict[str, Any]) -> str:
    names = list(tokens["train"])
    rows = [
        f"| {split} | " + " | ".join(str(tokens[split].get(name, 0)) for name in names) + " |"
        for split in ("train", "test")
    ]
    return "\n".join(["| samples | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|", *rows])


def _parts_table(records: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, record in records.items():
        for number, run in enumerate(_runs(record)):
            shown = f"{name}, continued" if number else name
            held_out = _held_out(run["last"].get("held_out", {}))
            rows.append(f"| {shown} | {run['steps']} | {duration(run['elapsed_s'])} | {held_out} |")
    return "\n".join(rows)


def _held_out(row: dict[str, str]) -> str:
    """Scores of one row; of the MCTP modules only the accuracy of the first and the last."""
    modules = [name for name in row if name.startswith("accuracy_mctp_")]
    hidden = {"step", *modules[1:-1], *(name for name in row if name.startswith("loss_mctp_"))}
    return ", ".join(f"{name} {float(value):.3g}" for name, value in row.items() if name not in hidden and value)
