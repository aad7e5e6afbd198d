"""Evaluate engines as users meet them: a real server, the client, the test split, two ASR evaluators.

    python -m evaluation --suite NAME --data DIR --url HOST:PORT     (a published suite: docs/evaluation.md)
    python -m evaluation --data DATA --engines engines/cpu --out out/evaluation
    python -m evaluation --data DATA --engines stage3=out/stage3/engines stage4=engines/cpu

Writes evaluation.md, evaluation.json, quality_speed.svg and answers.jsonl (every answer, its text and its transcripts).
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from evaluation.asr_evaluators import AsrEvaluators, Wave
from evaluation.case import KINDS, Case
from evaluation.command import run_command
from evaluation.dialogues import hold_all, load_dialogues, score_dialogues
from evaluation.errors import EvaluationError
from evaluation.held_out import load_cases
from evaluation.report import REPORT, write_report
from evaluation.scores import Scores, TeacherScores, score, score_codec, score_teacher
from evaluation.serving import Outcome, ask_all
from server.launch import TritonServer
from server.options import ServerOptions
from training.data.manifest import ChatSample, read_chat
from vita_audio.contract.modes import NAMED_MODES, parse_mode
from vita_audio.decoding.decoder import StreamingDecoder
from vita_audio.engines.manifest import load_manifest
from vita_audio.engines.onnxruntime.audio import OnnxFlow, OnnxVocoder
from vita_audio.engines.onnxruntime.speech_tokenizer import OnnxSpeechTokenizer
from vita_audio.machine import describe_machine
from vita_audio.speech_features import speech_tokens
from vita_audio.text.vocabulary import Vocabulary


def make_evaluators(data: Path, processes: int) -> AsrEvaluators:
    """The evaluators of a data folder: its training text and all its words."""
    lines = (data / "lexicon.txt").read_text(encoding="utf-8").split()
    train = read_chat(data, "train")
    return AsrEvaluators(
        [text for sample in train for text in (sample.question, sample.answer) if text], lines, processes
    )


def one_shot_decoder(decoder: StreamingDecoder, vocabulary: Vocabulary) -> Callable[[Outcome], Wave]:
    """Decodes an outcome's tokens in one window, with the noise that its stream had."""

    def decode(outcome: Outcome) -> Wave:
        codes = [code for token in outcome.tokens if (code := vocabulary.audio_code(token)) is not None]
        return decoder.decode_offline(codes, outcome.case.seed).astype(np.float32) / 32768.0

    return decode


def codec(tokenizer: OnnxSpeechTokenizer, decoder: StreamingDecoder) -> Callable[[Wave, int], Wave]:
    """16 kHz speech and a seed -> what is left of it after the speech tokenizer and the audio decoder."""

    def give_back(wave: Wave, seed: int) -> Wave:
        codes = [int(code) for code in speech_tokens(tokenizer, wave)]
        return decoder.decode_offline(codes, seed).astype(np.float32) / 32768.0

    return give_back


def evaluate(
    label: str, engines: Path, modes: list[str], cases: list[Case], dialogues: list[ChatSample], data: Path,
    asr: AsrEvaluators, tts_temperature: float | None, repetition_penalty: float | None, console: Console,
    answers: Path,
) -> list[Scores]:  # fmt: skip
    """Serve one folder of engines and score it in each mode that it can run; appends every answer to `answers`."""
    manifest = load_manifest(engines)
    mctp_modules = manifest.limits.mctp_modules
    decoder = StreamingDecoder(OnnxFlow(engines), OnnxVocoder(engines))
    decode = one_shot_decoder(decoder, manifest.vocabulary)
    codec_wer = score_codec(cases, asr, codec(OnnxSpeechTokenizer(engines), decoder))
    rows = []
    with TritonServer(ServerOptions(engines=engines, grpc_port=0, metrics_port=0)) as server:
        for mode in modes:
            if max(parse_mode(mode).pattern[1::2]) > mctp_modules:
                console.print(f"{label}: mode {mode} left out, the model has {mctp_modules} MCTP modules")
                continue
            asked = ask_all(server.grpc_url, cases, mode, tts_temperature, repetition_penalty=repetition_penalty)
            outcomes = list(track(asked, f"{label}, {mode}: asking", len(cases), console=console))
            console.print(f"{label}, {mode}: transcribing")
            scores, records = score(label, mode, outcomes, asr, decode)
            scores.codec_wer = codec_wer
            if dialogues:
                held = list(hold_all(server.grpc_url, dialogues, data, mode))
                score_dialogues(held, scores)
                records += [outcome.record() for outcome in held]
            rows.append(scores)
            with answers.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"model": label, **record}, ensure_ascii=False) + "\n" for record in records)
    return rows


def _main_of_suites(arguments: list[str], console: Console) -> None:
    from evaluation import suite_command  # its packages are those of the extra `evaluation`

    suite_command.run(suite_command.make_parser().parse_args(arguments), console)


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    of_suite = any(each.partition("=")[0] == "--suite" for each in given)
    return run_command(partial(_main_of_suites if of_suite else _main_of_generated_data, given))


def _main_of_generated_data(arguments: list[str], console: Console) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="data folder of a training (docs/training.md)")
    parser.add_argument("--engines", nargs="+", default=["engines/cpu"], help="DIR or NAME=DIR, several to compare")
    parser.add_argument("--modes", nargs="+", default=list(NAMED_MODES))
    parser.add_argument("--limit", type=int, default=100, help="cases of each kind")
    parser.add_argument("--kinds", nargs="+", choices=(*KINDS, "dialogue"), default=[*KINDS, "dialogue"])
    parser.add_argument("--tts-temperature", type=float, default=None, help="instead of the server's default")
    parser.add_argument("--repetition-penalty", type=float, default=None, help="instead of the checkpoint's own")
    parser.add_argument("--processes", type=int, default=2, help="evaluators at once")
    parser.add_argument("--out", type=Path, default=Path("out/evaluation"))
    _run(parser.parse_args(arguments), arguments, console)


def _run(options: argparse.Namespace, arguments: list[str], console: Console) -> None:
    cases = [case for case in load_cases(options.data, options.limit) if case.kind in options.kinds]
    dialogues = load_dialogues(options.data, options.limit) if "dialogue" in options.kinds else []
    models = {name or Path(folder).name: Path(folder) for name, folder in map(_model, options.engines)}
    if len(models) < len(options.engines):
        raise EvaluationError("--engines: two folders have one name: write NAME=DIR")
    options.out.mkdir(parents=True, exist_ok=True)
    answers = options.out / "answers.jsonl"
    answers.unlink(missing_ok=True)
    rows: list[Scores] = []
    command = shlex.join(["python", "-m", "evaluation", *arguments])
    with make_evaluators(options.data, options.processes) as asr:
        console.print("transcribing the teacher")
        teacher: TeacherScores = score_teacher(cases, asr)
        about = {
            "command": command,
            "machine": describe_machine(),
            "date": str(date.today()),
            "cases": ", ".join(
                f"{kind} {len(dialogues) if kind == 'dialogue' else sum(case.kind == kind for case in cases)}"
                for kind in options.kinds
            ),
            "words in the lexicon": len(asr.alike),
            "sampling": "the server's defaults"
            + ("" if options.tts_temperature is None else f", TTS at temperature {options.tts_temperature:g}")
            + ("" if options.repetition_penalty is None else f", repetition penalty {options.repetition_penalty:g}"),
        }
        for label, engines in models.items():
            rows += evaluate(
                label, engines, options.modes, cases, dialogues, options.data, asr, options.tts_temperature,
                options.repetition_penalty, console, answers,
            )  # fmt: skip
            write_report(options.out, rows, teacher, about)
    if not rows:
        raise EvaluationError("nothing was evaluated: no mode fits the engines")
    console.print(f"report: {options.out / REPORT}")


def _model(text: str) -> tuple[str, str]:
    """NAME=DIR or DIR as (name, folder); an empty name where there is none."""
    name, _, folder = text.rpartition("=")
    return name, folder


if __name__ == "__main__":
    sys.exit(main())
