"""Golden language model cases: greedy tokens by every engine, alone and batched; the interleaving rule."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from build_engines.conformance.language_model_cases import Case, Mistake, read_cases, speech_as_vocabulary
from build_engines.conformance.result import Result, compare_tokens
from build_engines.onnxruntime.language_model import export_language_model
from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.checkpoint.language_model import load_language_model
from vita_audio.engines.interface import LanguageModelEngine
from vita_audio.engines.onnxruntime.language_model import OnnxLanguageModel
from vita_audio.engines.tensorrt_llm.language_model import TensorRtLlmLanguageModel
from vita_audio.engines.tensorrt_llm.layout import layout_for
from vita_audio.engines.tensorrt_llm.reference_executor import ReferenceExecutor
from vita_audio.engines.torch.language_model import TorchLanguageModel
from vita_audio.engines.torch_cuda.engine import TorchCudaLanguageModel
from vita_audio.engines.torch_cuda.settings import Settings
from vita_audio.engines.torch_cuda.weights import load_weights
from vita_audio.generation.scheduler import Scheduler
from vita_audio.text.interleave import interleave

SLOTS = 8
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
#: Of the TensorRT-LLM engine's pool: small, so that streams cross blocks often.
TOKENS_PER_BLOCK = 8
#: Rows of embeddings in a step of torch_cuda, at most.
PROMPT_ROWS = 512

Make = Callable[[LanguageModelConfig, Mapping[str, Tensor], int, int, Path, bool], LanguageModelEngine]


def _onnxruntime(
    config: LanguageModelConfig, tensors: Mapping[str, Tensor], slots: int, context: int, folder: Path, plus: bool
) -> LanguageModelEngine:
    if not (folder / "model.json").exists():
        export_language_model(config, tensors, folder, embedded=plus)
    return OnnxLanguageModel(folder, slots, context)


#: Every family with a language model, over (config, tensors, slots, context, folder for what is exported, whether the
#: checkpoint is a Plus one).
ENGINES: dict[str, Make] = {
    "torch": lambda config, tensors, slots, context, _, plus: TorchLanguageModel(
        config, tensors, slots, context, embedded=plus
    ),
    "onnxruntime": _onnxruntime,
    "torch_cuda": lambda config, tensors, slots, context, _, plus: TorchCudaLanguageModel(
        config, load_weights(config, tensors, DEVICE, torch.float32, PROMPT_ROWS * plus), Settings(slots, context)
    ),
    # Its packing, paging and scheduling, with PyTorch in place of the two engines.
    "tensorrt_llm": lambda config, tensors, slots, context, _, plus: TensorRtLlmLanguageModel(
        ReferenceExecutor(
            layout_for(config, slots, context, 256, tokens_per_block=TOKENS_PER_BLOCK, embedded=plus), tensors
        )
    ),
}


def check_language_model(
    folder: Path, mistake: Mistake | None = None, families: Collection[str] = tuple(ENGINES)
) -> Iterator[Result]:
    """`greedy_tokens.json` beside a checkpoint: cases alone, then all of them together.

    Args:
        mistake: run the prompts with speech alone, and make it.
        families: whose engines are run.
    """
    config, tensors = load_language_model(folder, torch.float32)
    cases = read_cases(folder, config.mctp_modules)
    plus = any(case.embedded for case in cases)
    if mistake:
        cases = [case for case in cases if case.embedded]
    if mistake == "no_speech":
        cases = [replace(case, embedded=None) for case in cases]
    elif mistake == "speech_in_mctp" and cases:
        config, tensors, cases = speech_as_vocabulary(config, tensors, cases)
    alone = [] if mistake else cases
    if plus:  # many patterns of few prompts: the last of each
        alone = list({tuple(case.prompt): case for case in alone}.values())
    context = max((len(case.prompt) + len(case.tokens) for case in cases), default=0) + 1
    with TemporaryDirectory() as scratch:
        for name in families:
            engine = ENGINES[name](config, tensors, SLOTS, context, Path(scratch), plus)
            for case in alone:
                yield compare_tokens(case.label, name, run_cases(engine, [case])[0], case.tokens)
            for case, made in zip(cases, run_cases(engine, cases), strict=True):
                yield compare_tokens(case.label, f"{name} batched", made, case.tokens)


def run_cases(engine: LanguageModelEngine, cases: Sequence[Case], prefill_chunk: int = 64) -> list[list[int]]:
    """The tokens of cases that are generated together."""
    scheduler = Scheduler(engine, (), prefill_chunk)
    streams = []
    for case in cases:
        scheduler.check(case.request)
        streams.append(scheduler.submit("", case.request))
    while not scheduler.idle:
        scheduler.step()
    return [s.tokens[s.prompt_tokens :] for s in streams]


def check_interleaving(path: Path) -> Iterator[Result]:
    """`interleaving.json`: the training-time order of text and audio tokens."""
    for index, case in enumerate(json.loads(path.read_text())):
        made = interleave(case["input"], case["ratio"], case["begin_of_audio"], case["end_of_audio"])
        yield compare_tokens(f"interleaving {index}", "python", made, case["interleaved"])
