"""A published suite through a served system: ask, judge, report.

    python -m evaluation --suite librispeech --data DIR --url HOST:PORT --mode boost --limit 200 --out DIR

Writes suite.md, suite.json, suite.svg, answers.jsonl, transcripts-*.jsonl and sound/. The same command continues after
a stop.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from evaluation.asking import Asking, ask, left_to_ask
from evaluation.case import Case
from evaluation.errors import EvaluationError
from evaluation.journal import Journal
from evaluation.judges import POCKETSPHINX, Judge, make_judge
from evaluation.layouts import generated
from evaluation.measures import used
from evaluation.paper import ROWS
from evaluation.suite_report import REPORT, load_earlier, write_report
from evaluation.suite_scores import compare, score
from evaluation.suites.registry import SUITES, load_suite
from server.launch import TritonServer
from server.options import ServerOptions
from vita_audio.checkpoint.file_records import file_sha256
from vita_audio.contract.modes import parse_mode
from vita_audio.engines.manifest import load_manifest
from vita_audio.machine import describe_machine, revision
from vita_client import Client


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", choices=SUITES, required=True)
    parser.add_argument("--part", default=None, help="; ".join(f"{n}: {', '.join(s.parts)}" for n, s in SUITES.items()))
    parser.add_argument("--data", type=Path, required=True, help="folder of the suite, or a manifest (JSON lines)")
    parser.add_argument("--url", default=None, help="a running server; without it one is started from --engines")
    parser.add_argument("--engines", type=Path, default=None, help="served engines, described in the report")
    parser.add_argument("--mode", default=None, help="instead of the checkpoint's")
    parser.add_argument("--limit", type=int, default=None, help="cases, drawn by chance; all without it")
    parser.add_argument("--max-tokens", type=int, default=None, help="of an answer, instead of the server's default")
    parser.add_argument("--concurrency", type=int, default=4, help="requests in flight")
    parser.add_argument("--patience", type=float, default=300.0, help="seconds to wait for a full or absent server")
    parser.add_argument("--judge", default=POCKETSPHINX, help="of sound: pocketsphinx, http://HOST/v1, 'command {}'")
    parser.add_argument("--judge-model", default="whisper-1", help="model asked for at an endpoint")
    parser.add_argument("--judges", type=int, default=2, help="sounds judged at once")
    parser.add_argument("--compare", type=Path, default=None, metavar="EARLIER.json", help="suite.json of another run")
    parser.add_argument("--note", action="append", default=[], help="for the report, such as what else ran meanwhile")
    parser.add_argument("--out", type=Path, default=Path("out/evaluation-suite"))
    return parser


def run(options: argparse.Namespace, console: Console) -> None:
    """Raises EvaluationError or another VitaError, one line each; what was done is kept."""
    for name in ("limit", "concurrency", "judges"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise EvaluationError(f"--{name} {value} is not valid: at least 1")
    if options.mode is not None:
        parse_mode(options.mode)
    part, cases = load_suite(options.suite, options.data, options.part, options.limit)
    earlier = load_earlier(options.compare, options.suite, part) if options.compare else None
    judge = _judge(options, cases)
    engines = options.engines or (None if options.url else Path("engines/cpu"))
    served = _describe(engines) if engines else {}
    identity = {
        "suite": options.suite,
        "part": part,
        "mode": options.mode or "the checkpoint's",
        "max tokens": options.max_tokens or "the server's default",
        **served,
    }
    about = {"data": str(options.data), "date": str(date.today()), "server": options.url or "started for this run"}
    about |= {"machine": describe_machine(), "revision": revision(), "requests in flight": options.concurrency}
    answers = Journal(options.out / "answers.jsonl", identity, about)
    asking = Asking(options.url or "", options.mode, options.max_tokens, options.concurrency, options.patience)
    with Progress(
        *Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        console=console,
    ) as progress:  # fmt: skip
        sounds = options.out / "sound"
        left = len(left_to_ask(cases, answers, sounds))
        _ask(asking, engines, cases, answers, sounds, _tick(progress, "asking", len(cases), len(cases) - left))
        transcripts = _transcripts(judge, cases, answers, options.out, progress) if judge else {}
    whole = {**identity, **answers.about, "judge": judge.name if judge else None, "scores by": used()}
    scores = score(cases, answers.entries, transcripts, {name: v for name, v in whole.items() if v is not None})
    own = generated(options.data)
    scores.notes += [note for note in (own, *options.note) if note]
    changes = compare(earlier, scores) if earlier else []
    write_report(options.out, scores, () if own else ROWS.get((options.suite, part), ()), earlier, changes)
    for note in scores.notes:
        console.print(f"note: {note}", markup=False)
    console.print(f"{sum(scores.skipped.values())} of {len(cases)} cases skipped; report: {options.out / REPORT}")
    if not scores.parts:
        first = answers.entries[cases[0].id]
        raise EvaluationError(f"no case was scored; the first: {first.get('detail') or next(iter(scores.skipped))}")


def _ask(
    asking: Asking,
    engines: Path | None,
    cases: Sequence[Case],
    answers: Journal,
    sounds: Path,
    done: Callable[[], None],
) -> None:
    """At the server that is given, or at one that is started where there is something to ask."""
    if not left_to_ask(cases, answers, sounds):
        return
    with ExitStack() as stack:
        url = asking.url
        if not url:
            assert engines is not None
            server = stack.enter_context(TritonServer(ServerOptions(engines=engines, grpc_port=0, metrics_port=0)))
            url = server.grpc_url
        with Client(url) as client:
            client.wait_ready(asking.patience_s)
        ask(Asking(**{**asdict(asking), "url": url}), cases, answers, sounds, done)


def _judge(options: argparse.Namespace, cases: Sequence[Case]) -> Judge | None:
    """None where no sound is judged. A judge that does not know the language is found out before anything is asked."""
    languages = {case.language for case in cases if case.task != "asr"}
    if not languages:
        return None
    judge = make_judge(options.judge, options.judge_model, options.judges)
    for language in sorted(languages):
        list(judge.transcribe([], language))
    return judge


def _transcripts(
    judge: Judge, cases: Sequence[Case], answers: Journal, out: Path, progress: Progress
) -> dict[str, str]:
    """Words of every sound; those that this judge has judged before are taken from its file.

    A sound is known by its hash: a case that is asked again writes another one under the same name.
    """
    name = re.sub(r"[^A-Za-z0-9]+", "-", judge.name)[:40].strip("-").lower()
    digest = hashlib.sha256(judge.name.encode()).hexdigest()[:8]
    journal = Journal(out / f"transcripts-{name}-{digest}.jsonl", {"judge": judge.name}, {}, "sound")
    names = {case.id: answers.entries.get(case.id, {}).get("sound", "") for case in cases}
    sounds = {name: out / "sound" / file for name, file in names.items() if file}
    hashes = {name: file_sha256(sound) for name, sound in sounds.items()}
    done = _tick(progress, "judging", len(sounds), sum(found in journal.entries for found in hashes.values()))
    languages = {case.id: case.language for case in cases}
    for language in sorted(set(languages.values())):
        left = [name for name in sounds if languages[name] == language and hashes[name] not in journal.entries]
        for name, words in zip(left, judge.transcribe([sounds[name] for name in left], language), strict=True):
            journal.add({"sound": hashes[name], "file": names[name], "words": words})
            done()
    return {name: journal.entries[found]["words"] for name, found in hashes.items()}


def _tick(progress: Progress, name: str, total: int, before: int) -> Callable[[], None]:
    task = progress.add_task(name, total=max(total, 1), completed=before)
    return lambda: progress.advance(task)


def _describe(engines: Path) -> dict[str, Any]:
    """What may change quality, of the engines that are served."""
    manifest = load_manifest(engines)
    families = ", ".join(f"{stage} {family}" for stage, family in sorted(manifest.engines.items()))
    return {
        "checkpoint": f"{manifest.checkpoint_name} ({manifest.checkpoint_sha256[:12]})",
        "engines": f"{manifest.target}: {families}",
        "format": json.dumps(manifest.gpu.options, sort_keys=True) if manifest.gpu else "as in the checkpoint",
        "flow steps": (manifest.schedule or {}).get("flow_steps", "-"),
    }
