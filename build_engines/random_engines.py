"""Write a folder of torch_cuda engines with random weights, of any size, with no checkpoint in between: for measuring.

    python -m build_engines.random_engines --size 7b --out engines/random-7b --device cuda --head audio

The folder is what `python -m build_engines --target gpu --engine torch_cuda` makes of the random-weight checkpoint of
that size, but that streams do not end before MAX_TOKENS. Weights are drawn on the device and hashed while written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from torch import Tensor

from build_engines import options as flags
from build_engines.checked import checked_facts
from build_engines.command import errors_reported
from build_engines.gpu_manifest import gpu_record
from build_engines.limits import make_limits
from build_engines.machine import check_gpu, check_gpu_memory, check_host, machine_facts
from build_engines.manifest import make_manifest
from build_engines.options import GpuOptions
from build_engines.pipeline import Build
from build_engines.plan import GpuPlan, check_mctp, plan_build
from build_engines.sizes import Sizes
from build_engines.torch_cuda.formats import Fp8Parts, encode, outline
from vita_audio.checkpoint.check import CheckpointSizes
from vita_audio.checkpoint.file_records import FileRecord, combined_sha256, file_records, whole_folder
from vita_audio.checkpoint.random_weights.audio import flow_weights, speech_tokenizer_weights, vocoder_weights
from vita_audio.checkpoint.random_weights.language_model import RandomLanguageModel, drawing_device
from vita_audio.checkpoint.random_weights.tokenizer import build_tokenizer
from vita_audio.checkpoint.sizes import SIZES, ModelSize, SizeName
from vita_audio.checkpoint.tensor_file import Outline, write_tensors
from vita_audio.contract.errors import EngineError
from vita_audio.contract.limits import DEFAULT_REPETITION_PENALTY
from vita_audio.contract.modes import NAMED_MODES
from vita_audio.engines.gpu_machine import GpuMachine, find_machine
from vita_audio.engines.gpu_record import TORCH_CUDA
from vita_audio.engines.manifest import MANIFEST, Manifest
from vita_audio.engines.torch.weights import FLOW_FILE, SPEECH_TOKENIZER_FILE, VOCODER_FILE, WEIGHTS_FILE
from vita_audio.stopping import stop_on_signals
from vita_audio.text.normalization import NONE
from vita_audio.text.vocabulary import Vocabulary

_TOKENIZER_FILE = "tokenizer.json"


def write_random_engines(
    build: Build,
    size: ModelSize,
    seed: int = 0,
    device: torch.device | None = None,
    machine: GpuMachine | None = None,
    on_file: Callable[[str, FileRecord, float], None] = lambda name, record, seconds: None,
) -> Manifest:
    """Write the engines; the folder is complete or not there.

    Args:
        build: `out`, limits and GPU options; `checkpoint` is only a name.
        size: of all networks.
        seed: of all weights.
        device: where weights are drawn; None is the first GPU. On a CPU no GPU is asked for.
        machine: what the engines are for; None looks at this machine.
        on_file: called with name, record and seconds of each file.

    Raises:
        EngineError: the folder is not empty or cannot be written, an option is out of range, there is no such GPU, or
            disk or memory are too small.
    """
    device = device or torch.device("cuda:0")
    machine = machine or find_machine()
    with whole_folder(build.out, EngineError) as folder:
        for file in (WEIGHTS_FILE, FLOW_FILE):
            (folder / file).parent.mkdir()
        return _write(build, folder, size, seed, device, machine, on_file)


def _write(
    build: Build,
    folder: Path,
    size: ModelSize,
    seed: int,
    device: torch.device,
    machine: GpuMachine,
    on_file: Callable[[str, FileRecord, float], None],
) -> Manifest:
    tokenizer = build_tokenizer(size.merges, size.audio_codes, seed, text_tokens=size.text_tokens)
    tokenizer.save(str(folder / _TOKENIZER_FILE))
    size = size.for_tokens(tokenizer.get_vocab_size())
    vocabulary = Vocabulary.from_tokenizer(folder / _TOKENIZER_FILE)
    pattern = NAMED_MODES["boost"]
    facts = checked_facts(
        CheckpointSizes(
            *size.networks,
            vocabulary,
            pattern,
            samples=True,
            repetition_penalty=DEFAULT_REPETITION_PENALTY,
            text_normalization=NONE,
        )
    )
    facts["limits"] = make_limits(build, facts).to_dict()
    sizes = Sizes(build.checkpoint.name, *size.networks, vocabulary.text_tokens, pattern)
    plan = _checked_plan(build, sizes, device, machine)
    facts |= machine_facts(build.gpu, machine)
    files = file_records(folder, [_TOKENIZER_FILE])
    start_s = time.monotonic()
    parts = Fp8Parts.of(build.gpu, build.gpu.head_first_id(pattern, vocabulary.text_tokens))
    for name, stored, tensors in _networks(size, vocabulary, seed, device, parts):
        files[name] = write_tensors(folder / name, stored, tensors)
        before_s, start_s = start_s, time.monotonic()
        on_file(name, files[name], start_s - before_s)
    checkpoint_sha256 = combined_sha256({name: record.sha256 for name, record in files.items()})
    manifest = make_manifest(build, facts, files, checkpoint_sha256, gpu_record(build, facts, plan))
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _networks(
    size: ModelSize, vocabulary: Vocabulary, seed: int, device: torch.device, parts: Fp8Parts
) -> Iterator[tuple[str, Outline, Iterable[tuple[str, Tensor]]]]:
    """File, outline and tensors of each network; an audio network is drawn whole."""
    language_model = RandomLanguageModel(size.language_model, device, seed, torch.bfloat16, vocabulary, ends=False)
    config = size.language_model
    yield WEIGHTS_FILE, outline(config, parts), encode(config, parts, language_model.items())
    for name, draw in (
        (SPEECH_TOKENIZER_FILE, partial(speech_tokenizer_weights, size.speech_tokenizer)),
        (FLOW_FILE, partial(flow_weights, size.flow)),
        (VOCODER_FILE, partial(vocoder_weights, size.vocoder)),
    ):
        tensors = draw(seed, device)
        yield name, {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in tensors.items()}, tensors.items()


def _checked_plan(build: Build, sizes: Sizes, device: torch.device, machine: GpuMachine) -> GpuPlan:
    """Checked as a build checks it, but that engines drawn on a CPU may be for no GPU."""
    build.gpu.check()
    check_mctp(sizes, build.gpu)
    plan = plan_build(sizes, build.gpu, build.context_tokens)
    if device.type != "cpu":
        check_gpu(build.gpu, machine)
        check_gpu_memory(plan, machine)
    check_host(plan, build.out)
    return plan


def main(
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist or be empty.")],
    size: Annotated[SizeName, typer.Option(help="7b is as released.")] = SizeName.seven_b,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all weights.")] = 0,
    device: Annotated[str, typer.Option(help="Where weights are drawn: cuda, or cpu, which asks for no GPU.")] = "cuda",
    context_tokens: flags.ContextTokens = 4096,
    max_tokens: Annotated[int, typer.Option(help="Most answer tokens a request may ask for.")] = 4096,
    format: flags.Format = "bf16",
    mctp_format: flags.MctpFormat = "",
    mctp_head_format: flags.MctpHeadFormat = "bf16",
    streams: flags.Streams = 64,
    step_tokens: flags.StepTokens = 2048,
    head: flags.Head = "auto",
    audio_batch: flags.AudioBatch = 8,
) -> None:
    """Write torch_cuda engines with random weights."""
    console = Console(highlight=False)
    gpu = GpuOptions(
        TORCH_CUDA, format, mctp_format, streams=streams, step_tokens=step_tokens, head=head, audio_batch=audio_batch,
        mctp_head_format=mctp_head_format,
    )  # fmt: skip
    build = Build(Path(f"random-{size.value}-{seed}"), out, "gpu", context_tokens, max_tokens, gpu)

    def on_file(name: str, record: FileRecord, seconds: float) -> None:
        console.print(f"{name}: {record.bytes / 1e9:.2f} GB in {seconds:.1f} s", markup=False, soft_wrap=True)

    start_s = time.monotonic()
    with errors_reported(RuntimeError):  # of PyTorch, memory of the GPU above all
        write_random_engines(build, SIZES[size.value], seed, drawing_device(device), on_file=on_file)
    console.print(f"wrote {out} in {time.monotonic() - start_s:.1f} s", markup=False, soft_wrap=True)


if __name__ == "__main__":
    stop_on_signals()
    typer.run(main)
