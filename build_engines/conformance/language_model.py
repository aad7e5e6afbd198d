"""Golden language model cases: greedy tokens by every engine, alone and batched; the interleaving rule."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from build_engines.conformance.result import Result, compare_tokens
from build_engines.onnxruntime.language_model import export_language_model
from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.checkpoint.language_model import load_language_model
from vita_audio.contract.messages import GenerationSettings
from vita_audio.engines.interface import LanguageModelEngine
from vita_audio.engines.onnxruntime.language_model import OnnxLanguageModel
from vita_audio.engines.tensorrt_llm.language_model import TensorRtLlmLanguageModel
from vita_audio.engines.tensorrt_llm.layout import layout_for
from vita_audio.engines.tensorrt_llm.reference_executor import ReferenceExecutor
from vita_audio.engines.torch.language_model import TorchLanguageModel
from vita_audio.engines.torch_cuda.engine import TorchCudaLanguageModel
from vita_audio.engines.torch_cuda.settings import Settings
from vita_audio.engines.torch_cuda.weights import load_weights
from vita_audio.generation.request import GenerationRequest
from vita_audio.generation.scheduler import Scheduler
from vita_audio.text.interleave import interleave

SLOTS = 8
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
#: Of the TensorRT-LLM engine's pool: small, so that streams cross blocks often.
TOKENS_PER_BLOCK = 8

Make = Callable[[LanguageModelConfig, Mapping[str, Tensor], int, int, Path], LanguageModelEngine]


def _onnxruntime(
    config: LanguageModelConfig, tensors: Mapping[str, Tensor], slots: int, context: int, folder: Path
) -> LanguageModelEngine:
    if not (folder / "model.json").exists():
        export_language_model(config, tensors, folder)
    return OnnxLanguageModel(folder, slots, context)


#: Every family with a language model, over (config, tensors, slots, context, folder for what is exported).
ENGINES: dict[str, Make] = {
    "torch": lambda config, tensors, slots, context, _: TorchLanguageModel(config, tensors, slots, context),
    "onnxruntime": _onnxruntime,
    "torch_cuda": lambda config, tensors, slots, context, _: TorchCudaLanguageModel(
        config, load_weights(config, tensors, DEVICE, torch.float32), Settings(slots, context)
    ),
    # Its packing, paging and scheduling, with PyTorch in place of the two engines.
    "tensorrt_llm": lambda config, tensors, slots, context, _: TensorRtLlmLanguageModel(
        ReferenceExecutor(layout_for(config, slots, context, 256, tokens_per_block=TOKENS_PER_BLOCK), tensors)
    ),
}


def check_language_model(folder: Path) -> Iterator[Result]:
    """`greedy_tokens.json` beside a checkpoint: every case alone, then all of them together."""
    config, tensors = load_language_model(folder, torch.float32)
    cases = _cases(folder / "greedy_tokens.json", config.mctp_modules)
    context = max(len(c["prompt"]) + len(c["tokens"]) for c in cases) + 1
    with TemporaryDirectory() as scratch:
        for name, make in ENGINES.items():
            engine = make(config, tensors, SLOTS, context, Path(scratch))
            for index, case in enumerate(cases):
                yield compare_tokens(_label(folder, index, case), name, _run(engine, [case])[0], case["tokens"])
            together = zip(_run(engine, cases), cases, strict=True)
            for index, (made, case) in enumerate(together):
                yield compare_tokens(_label(folder, index, case), f"{name} batched", made, case["tokens"])


def check_interleaving(path: Path) -> Iterator[Result]:
    """`interleaving.json`: the training-time order of text and audio tokens."""
    for index, case in enumerate(json.loads(path.read_text())):
        made = interleave(case["input"], case["ratio"], case["begin_of_audio"], case["end_of_audio"])
        yield compare_tokens(f"interleaving {index}", "python", made, case["interleaved"])


def _cases(path: Path, modules: int) -> list[dict[str, Any]]:
    """One pattern each. Files of the Plus variant hold several `runs` a prompt; left out of these, since no engine
    takes them: prompts with speech as embeddings, and patterns with more MCTP tokens in a row than modules."""
    cases = []
    for case in json.loads(path.read_text()):
        if "runs" not in case:
            cases.append(case)
        elif not case["audio_spans"]:
            cases += [case | run for run in case["runs"] if max(run["pattern"][1::2]) <= modules]
    return cases


def _label(folder: Path, index: int, case: dict[str, Any]) -> str:
    pattern = ",".join(map(str, case["pattern"]))
    return f"{folder.name} {index}: prompt {len(case['prompt'])}, [{pattern}], penalty {case['repetition_penalty']}"


def _run(engine: LanguageModelEngine, cases: list[dict[str, Any]]) -> list[list[int]]:
    scheduler = Scheduler(engine, end_tokens=())
    streams = []
    for case in cases:
        settings = GenerationSettings(
            task="text",
            mode="",
            pattern=tuple(case["pattern"]),
            max_tokens=len(case["tokens"]),
            temperature=0.0,
            top_k=0,
            top_p=1.0,
            repetition_penalty=case["repetition_penalty"],
            seed=0,
        )
        request = GenerationRequest(case["prompt"], settings)
        scheduler.check(request)
        streams.append(scheduler.submit("", request))
    while not scheduler.idle:
        scheduler.step()
    return [s.tokens[s.prompt_tokens :] for s in streams]
