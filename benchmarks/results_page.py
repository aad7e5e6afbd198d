"""docs/results.md from the records of `benchmarks.results` and of the GPU sessions: a short text and a table each."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.conversation import shown as conversation_shown
from benchmarks.faults.table import table as faults_table
from benchmarks.gateway import shown as gateway_shown
from benchmarks.paper_report import audio, first_chunk, speeds
from benchmarks.record import cells, markdown_table, number, percentile
from benchmarks.serving import SPEED, WHERE, speed_cells, where_cells
from benchmarks.warm_up import SHOWN, shown

Record = Mapping[str, Any]
_HEAD = """# Results

<!-- Written by `python -m benchmarks.results`; change that, not this. -->

The CPU tables were measured by `make results` on one revision, {revision}, {date}: a real Triton server on loopback,
the small checkpoint, its engines for the CPU, the clients on the same cores ({machine}).

TTFA: from the moment a request is sent to the arrival of the first response with audible sound
([metrics.md](metrics.md)). Real-time factor: seconds from sending to the last sound, for each second of sound. P50 and
P95 are percentiles over streams. The GPU tables, and those that take hours (faults, the long soak), are of another
date and revision, which each of them names.
"""
_GPU_RUN = "2026-11-27"
#: File, the revision it was measured on, heading, and what is said of it.
_GPU = (
    ("first_light/paper_tables_7b_nvidia_h100_80gb_hbm3.json", "b7b0b4d", "Language model, 7B",
     "Random weights, bfloat16, CUDA graphs, no server. The share is of what the memory bandwidth allows."),
    ("served_audio_graphs/paper_tables_7b_nvidia_h100_80gb_hbm3_audio.json", "5fe6271", "Audio stages",
     "Released sizes, random weights."),
    ("served_audio_graphs/serving_7b.json", "5fe6271", "Served 7B",
     "Through the real server. Rows last 4 s, so those of few streams count few. At this revision TTFA was counted to "
     "the moment at which the first audible sample could be played."),
    ("served_eager_audio/serving_small.json", "bae3f3c", "Served small checkpoint",
     "With eager audio engines, as they were at this revision. TTFA as in the table before."),
)  # fmt: skip


def page(records: Mapping[str, Record], about: Mapping[str, str], gpu: Path, folder: Path, beside: Path) -> str:
    """The whole page. `folder` holds the CPU records, `beside` the page: pictures are linked between the two."""
    parts = [_HEAD.format(**about)]
    for name, (title, text, table) in _TABLES.items():
        record = records[name]
        parts.append(f"## {title}\n\n{text}\n")
        if "not_run" in record:
            parts.append(f"Not run: {record['not_run']}.\n")
            continue
        parts += [_source(record), table(record)]
        for picture in sorted(Path(record.get("folder", folder)).glob(f"{name}_*.svg")):
            parts.append(f"![]({Path(os.path.relpath(picture, beside)).as_posix()})\n")
    parts += _quality(json.loads((gpu.parent / "small_evaluation.json").read_text(encoding="utf-8")))
    parts.append(f"# GPU\n\nOne NVIDIA H100 80GB HBM3; records under `benchmarks/results/gpu/{_GPU_RUN}`.\n")
    for path, revision, title, text in _GPU:
        record = json.loads((gpu / _GPU_RUN / path).read_text(encoding="utf-8"))
        parts += [f"## {title}\n\n{text}\n", _source({**record, "revision": revision}), *_gpu_tables(record)]
    return "\n".join(parts)


def _quality(record: Record) -> list[str]:
    """The small checkpoint's quality: measured when it was trained, and as good on any machine."""
    about, teacher = record["about"], record["teacher"]
    rows = [
        [row["mode"], *(_share(value) for value in (row["asr_wer"], row["tts_wer"]["domain"], row["spoken_to_text"],
         row["spoken_to_speech"], row["typed_to_text"], row["typed_to_speech"])), number(row["lm_tokens_per_s"])]
        for row in record["scores"]
    ]  # fmt: skip
    spoken, typed = (_share(teacher[name]) for name in ("spoken", "typed"))
    rows.append(["teacher", "-", _share(teacher["tts"]["domain"]), "-", spoken, "-", typed, "-"])
    columns = "mode|ASR WER|TTS WER|spoken to text|spoken to speech|typed to text|typed to speech|LM tokens/s"
    return [
        "## Quality of the small checkpoint\n\nWord errors of recognition and of what a recogniser makes of speech; "
        "right answers, in text and by ear. From the evaluation of the checkpoint, which has its own date; what its "
        "training had of the test split: [training.md](training.md#the-committed-checkpoint).\n",
        f"`{about['command']}`  \n{about['machine']}, {about['date']}\n",
        markdown_table(columns, rows),
        "![](pictures/small_quality_speed.svg)\n",
    ]


def _source(record: Record) -> str:
    machine = "; ".join(record[name] for name in ("gpu", "machine") if name in record)
    return f"`{record['command']}`  \n{machine}; revision {record['revision']}, {record['date'][:10]}\n"


def _gpu_tables(record: Record) -> Iterable[str]:
    if "rows" in record:
        yield markdown_table(
            "task|mode|streams|counted|TTFA P50 / P95 ms|real-time factor P50|tokens/s|audio s/s|with underruns",
            (
                [
                    *cells(row, "task mode streams streams_counted"),
                    _pair(row, "ttfa_ms" if "ttfa_ms_p50" in row else "ttfa_audible_ms"),
                    *cells(row, "rtf_p50:3 tokens_per_s:0 audio_s_per_s:1 underrun_streams:%"),
                ]
                for row in record["rows"] if "skipped" not in row
            ),
        )  # fmt: skip
        return
    for key, render in (("table5", speeds), ("first_chunk", first_chunk), ("audio", audio)):
        if key in record:
            yield render(dict(record), record[key])


def _serving(record: Record) -> str:
    return (
        markdown_table(SPEED, map(speed_cells, record["rows"]))
        + "\nWhere the time to first audio goes, medians in ms. With several streams the stages of one overlap, so "
        "that the rest (hops and scheduling; its share of TTFA) can be negative there. Per response: the rest of any "
        "response of a stream, not only of the first.\n\n"
        + markdown_table(WHERE, map(where_cells, record["rows"]))
        + f"\nReady after {record['start_s']:.1f} s; resident memory {record['resident_mib_idle']:.0f} MiB idle, "
        f"{record['resident_mib_loaded']:.0f} MiB after the run.\n"
    )


def _load_steps(record: Record) -> str:
    rows = []
    for phase in record["phases"]:
        ttfa, rtf = (phase["metrics"].get(name, {}) for name in ("ttfa", "rtf"))
        rows.append(
            [number(phase["offered_per_s"], 2), str(phase["streams"]), number(ttfa.get("p50")), number(ttfa.get("p95")),
             number(rtf.get("p95"), 2), _share(phase["underrun_rate"]), _share(phase["loss_rate"])]
        )  # fmt: skip
    columns = "streams/s|streams|TTFA P50 ms|TTFA P95 ms|real-time factor P95|with underruns|lost"
    return markdown_table(columns, rows) + "\n" + _slo(record["slo"])


def _slo(checks: Iterable[Record]) -> str:
    """Promise against measured, for all steps together."""
    parts = []
    for check in checks:
        value, limit = (
            (number(x) + " ms" if check["unit"] == "ms" else _share(x)) for x in (check["value"], check["limit"])
        )
        parts.append(f"{check['name']} {value} ({'kept' if check['kept'] else 'MISSED'}: at most {limit})")
    return f"All streams against the promise: {'; '.join(parts)}.\n"


def _soak(record: Record) -> str:
    streams, found, left = record["load"]["streams"], record["percentiles"], record["left_behind"]
    ttfa, threads, files = found["metrics"].get("ttfa", {}), record["threads"], record["files"]
    text = (
        f"{streams['measured']} streams, {_share(found['loss_rate'])} lost, {_share(found['underrun_rate'])} with "
        f"underruns; TTFA P50 / P95 {number(ttfa.get('p50'))} / {number(ttfa.get('p95'))} ms. Threads "
        f"{threads['least']} to {threads['most']}, open files {files['least']} to {files['most']}; after the load "
        f"{left['running']:g} streams ran and {left['waiting']:g} waited.\n\n"
    )
    if kills := record.get("kills"):
        back_s = [each["back_s"] for each in kills]
        text += (
            f"{len(kills)} kills of random processes: ready again after {percentile(back_s, 50):.1f} s in the median, "
            f"{max(back_s):.1f} s at most; the server ended with status {record['exit_code_of_the_server']}.\n\n"
        )
    rows = (
        [name, str(row["first_mib"]), str(row["last_mib"]), f"{row['share']:+.1%}"]
        for name, row in record["memory"].items()
    )
    note = f"\n{record['note']}\n" if record.get("note") else ""
    return text + markdown_table("process|first quarter MiB|last quarter MiB|growth", rows) + note


def _scale_out(record: Record) -> str:
    spread, kill, drained = (record[name] for name in ("spread", "kill", "drained_restart"))
    streams = " and ".join(str(count) for count in spread["streams"].values())
    rows = [
        ["both up", f"{streams} streams on the two servers", str(spread["failed"])],
        ["one killed", f"noticed after {kill['noticed_ms']:.0f} ms; {kill['unharmed']} streams of the other went on",
         str(kill["failed"])],
        ["new streams before that was noticed", str(kill["new_before_notice"]), str(kill["new_before_notice_failed"])],
        ["new streams after", str(kill["new"]), str(kill["new_failed"])],
        ["drained restart of the other", f"{drained['ended']} streams", str(drained["failed"])],
    ]  # fmt: skip
    return markdown_table("phase|what happened|streams that failed", rows)


def _warm_up(record: Record) -> str:
    lines = [line for row in record["rows"] for line in shown(row)]
    return markdown_table(SHOWN, lines) + f"\nReady after {record['start_s']:.1f} s.\n"


def _conversation(record: Record) -> str:
    return markdown_table("|prefix cache on|off", conversation_shown(record))


def _gateway(record: Record) -> str:
    return markdown_table("|P50|P95|aim", gateway_shown(record))


def _language_model(record: Record) -> str:
    modes = list(record["rows"][0]["tokens_per_s"])
    rows = []
    for row in record["rows"]:
        speed = row["tokens_per_s"]
        rows.append(
            [str(row["streams"]), *(number(speed[m]) for m in modes), f"{speed['turbo'] / speed['vanilla']:.2f}x"]
        )
    return markdown_table("|".join(["streams", *modes, "turbo / vanilla"]), rows)


def _seams(record: Record) -> str:
    rows = record["rows"]
    return markdown_table(
        "setting|where|points|jump|jump P95|flux dB|flux P95|distance dB|real-time factor",
        (
            cells(row, "setting where points jump:2 jump_p95:2 flux_db:2 flux_db_p95:2 distance_db:2 rtf:3")
            for row in rows
        ),
    )


def _conformance(record: Record) -> str:
    rows = ([row["implementation"], str(row["passed"]), str(row["cases"])] for row in record["rows"])
    return markdown_table("implementation|passed|cases", rows) + "".join(
        f"\nFailed: {each}\n" for each in record["failed"]
    )


def _pair(row: Record, name: str) -> str:
    return f"{number(row[f'{name}_p50'])} / {number(row[f'{name}_p95'])}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.3g} %"


_TABLES: dict[str, tuple[str, str, Callable[[Record], str]]] = {
    "serving": (
        "Served speed and streams at once",
        "Closed loop: each client sends a spoken question of 1.7 s when its last answer has ended. RTF: real-time "
        "factor. LM alone: tokens of a stream for each second between its slot and its last token.",
        _serving,
    ),
    "load_steps": (
        "Load test in steps",
        "Open loop, Poisson arrivals: spoken and typed questions, speech synthesis and recognition, one answer in ten "
        "cut short; players with 60 ms in hand.",
        _load_steps,
    ),
    "soak": (
        "Soak of five minutes",
        "Open loop at a constant rate, after the longest questions in every place; memory is proportional set size.",
        _soak,
    ),
    "faults": (
        "Faults",
        "Each row has a server of its own under load: three callers, short streams and health checks all the time. "
        "Seconds count from the fault: until the server is seen not ready, until the last stream that it cost has "
        "ended, until a stream is answered again. Right: not ready and all ended within 2 s, back within 15 s, nothing "
        "left after 5 s, and every end an error that says to try again; or no caller noticed anything. `sh` is the "
        "shell through which HAProxy is kept running, or Triton starts a model process.",
        faults_table,
    ),
    "long_soak": (
        "Soak of two hours with kills",
        "As the soak above, while a random process below the launcher is killed every ten minutes. Streams that a kill "
        "costs, and those sent while the server starts, are lost.",
        _soak,
    ),
    "scale_out": (
        "Two servers behind HAProxy",
        "Closed-loop callers on both servers; one is killed, the other drained and restarted.",
        _scale_out,
    ),
    "conversation": (
        "Conversations",
        "One caller on four slots: the same spoken question as every turn, another one in each conversation; questions "
        "that are appended while they are spoken, from their end to the first sound; then four callers at once who "
        "take turns in more conversations than there are slots; greedy conversations with each turn at one of two "
        "servers, drawn at random; clips of 28 s that go on by 4 s.",
        _conversation,
    ),
    "gateway": (
        "The gateway",
        "One stream: the same text through gRPC and through the gateway, by turns; Realtime sessions that do nothing; "
        "speech into a long answer, from its first loud sample on.",
        _gateway,
    ),
    "warm_up": (
        "First requests of a server",
        "Fresh servers; medians in ms of the first, second and tenth request, or round of requests at once. Client: "
        "one that is connected and has been used elsewhere, or a new process for every request.",
        _warm_up,
    ),
    "language_model": (
        "Language model alone",
        "Tokens/s of all streams together: greedy, one thread, no server, as the paper's Table 5 measures it.",
        _language_model,
    ),
    "seams": (
        "Seams of the streaming decoder",
        "Sound at chunk borders against the points in between. jump: step over the rms step within 10 ms; flux: "
        "spectra of the 10 ms before and after; distance: to the one-shot decode.",
        _seams,
    ),
    "conformance": (
        "Conformance",
        "Golden data through the reference and every engine of this machine.",
        _conformance,
    ),
}
