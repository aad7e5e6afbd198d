"""What the CUDA engines dispatch, on a device that is not there: nothing that a captured graph cannot hold."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fake_cuda import DEVICE, Dispatched, HostSynchronisation, fake_cuda
from vita_audio.checkpoint.configs import (
    FlowConfig,
    LanguageModelConfig,
    SenseVoiceConfig,
    SpeechTokenizerConfig,
    VocoderConfig,
)
from vita_audio.decoding.decoder import StreamingDecoder
from vita_audio.decoding.flow_stream import window_shapes
from vita_audio.decoding.vocoder_stream import VocoderGeometry, chunk_shapes
from vita_audio.engines.torch.audio import TorchFlow, TorchSpeechTokenizer, TorchVocoder
from vita_audio.engines.torch_cuda.audio import TorchCudaFlow, TorchCudaVocoder
from vita_audio.engines.torch_cuda.device_arrays import _torch_type
from vita_audio.engines.torch_cuda.kernels.audio_operations import KERNELS
from vita_audio.engines.torch_cuda.sensevoice import TorchCudaSenseVoice
from vita_audio.engines.torch_cuda.shapes import Shape, round_rows
from vita_audio.engines.torch_cuda.speech_tokenizer import TorchCudaSpeechTokenizer

SEVEN_B = LanguageModelConfig(168072, 3584, 18944, 28 + 10, 28, 4, 10, 32768)
CONTEXT = 4096
#: Layers and modules are alike: two of each stand for all where the depth is not the question.
SHALLOW = replace(SEVEN_B, num_hidden_layers=2 + 2, num_nextn_predict_layers=2)
#: Kernels that one more layer, or one more module, adds to a call. A number here may only go down.
MOST_KERNELS = {"extend": 9, "burst": 14}

needs_triton = pytest.mark.skipif(
    not importlib.util.find_spec("triton"), reason="the GPU language Triton is not installed (extra gpu-check)"
)


def shape(streams: int, stream_rows: int, draws: bool = True) -> Shape:
    return Shape(round_rows(streams * stream_rows), streams, stream_rows, CONTEXT, draws)


@contextmanager
def launches(log: Dispatched) -> Iterator[Dispatched]:
    """The log, which within it also notes kernels of the GPU language instead of launching them."""
    from triton.runtime.jit import JITFunction

    run = mock.patch.object(JITFunction, "run", lambda kernel, *args, **rest: log.launched(kernel, *args, **rest))
    with log, run:
        yield log


def dispatched(
    config: LanguageModelConfig,
    kind: str,
    shape: Shape,
    first_mctp_id: int = 0,
    fault: Callable[[Any, dict[str, Tensor]], None] = lambda forward, inputs: None,
) -> list[str]:
    """Kernels of the function that would be captured for a shape; `fault` breaks the network or its inputs before."""
    from benchmarks.gpu_kernels import GPUS, engine_without_memory

    engine = engine_without_memory(config, 64, CONTEXT, GPUS[1], first_mctp_id)
    with fake_cuda() as device:

        def moved(leaf: Any) -> Any:
            return torch.empty(leaf.shape, dtype=leaf.dtype, device=device) if isinstance(leaf, Tensor) else leaf

        forward = engine.forward
        vars(forward).update(tree_map(moved, vars(forward)))
        fields, function = forward.function(kind, shape)
        inputs = {name: torch.empty(size, dtype=torch.int64, device=device) for name, (size, _) in fields.items()}
        fault(forward, inputs)
        with launches(Dispatched()) as log:
            function(inputs)
    return log.kernels


@needs_triton
@pytest.mark.parametrize("streams", [1, 8, 64])
@pytest.mark.parametrize("stream_rows", [1, 16])
@pytest.mark.parametrize("kind", ["extend", "burst"])
def test_a_step_never_waits_for_the_host(kind: str, stream_rows: int, streams: int) -> None:
    kernels = dispatched(SHALLOW, kind, shape(streams, stream_rows))
    assert kernels.count("_attend_kernel") == 2
    assert kernels.count("_draw_kernel") == (1 if kind == "extend" else 2)  # however the streams sample


@needs_triton
@pytest.mark.parametrize(
    ("kind", "chunk", "first_mctp_id"),
    [
        ("extend", shape(1, 256, False), 0),  # a chunk of a prompt
        ("burst", shape(1, 256, False), 0),
        ("extend", shape(64, 1), 0),
        ("burst", shape(64, 16), 0),
        ("burst", shape(8, 16), 151_688),  # the audio-only head
    ],
)
def test_nor_do_prompts_or_other_samplings_at_full_depth(kind: str, chunk: Shape, first_mctp_id: int) -> None:
    kernels = dispatched(SEVEN_B, kind, chunk, first_mctp_id)
    assert kernels.count("_attend_kernel") == (28 if kind == "extend" else 10)


def added(kind: str, **options: Any) -> int:
    """Kernels that one more layer (of an extend) or module (of a burst) launches."""
    deeper = {"extend": (3, 2), "burst": (2, 3)}
    counts = []
    for layers, modules in ((2, 2), deeper[kind]):
        config = replace(SEVEN_B, num_hidden_layers=layers + modules, num_nextn_predict_layers=modules)
        counts.append(len(dispatched(config, kind, shape(1, 16), **options)))
    return counts[1] - counts[0]


@needs_triton
@pytest.mark.parametrize(("kind", "most"), MOST_KERNELS.items())
def test_kernels_of_a_layer_and_of_a_module_do_not_grow(kind: str, most: int) -> None:
    assert 0 < added(kind) <= most


def in_each_layer(extra: Callable[[Tensor], object]) -> Callable[[Any, dict[str, Tensor]], None]:
    """A fault: `extra` of the QKV product of each layer."""

    def fault(forward: Any, inputs: dict[str, Tensor]) -> None:
        rotate = forward.operations.rotate

        def broken(qkv: Tensor, *rest: Tensor) -> Tensor:
            extra(qkv)
            return rotate(qkv, *rest)

        forward.operations = replace(forward.operations, rotate=broken)

    return fault


@needs_triton
def test_one_more_kernel_is_counted() -> None:
    assert added("extend", fault=in_each_layer(lambda x: x + 1)) == added("extend") + 1


HOST_NUMBER = torch.ones(())


def count_on_the_host(forward: Any, inputs: dict[str, Tensor]) -> None:
    inputs["count"] = torch.zeros(inputs["count"].shape, dtype=torch.int64, device="cpu")


@needs_triton
@pytest.mark.parametrize(
    "fault",
    [
        in_each_layer(lambda x: x.sum().item()),
        in_each_layer(lambda x: bool((x > 0).all())),
        in_each_layer(lambda x: x.nonzero()),
        in_each_layer(lambda x: x[x > 0]),
        in_each_layer(lambda x: x.__setitem__(x > 0, 0.0)),
        in_each_layer(lambda x: x.cpu()),
        in_each_layer(lambda x: x + HOST_NUMBER),
        in_each_layer(lambda x: torch.tensor([1.0], device=x.device)),
        in_each_layer(lambda x: x.new_tensor([1.0])),
        count_on_the_host,
    ],
    ids="item bool nonzero masked masked_write copy host_number tensor new_tensor kernel_argument".split(),
)
def test_a_wait_for_the_host_is_found(fault: Callable[[Any, dict[str, Tensor]], None]) -> None:
    with pytest.raises(HostSynchronisation):
        dispatched(SHALLOW, "extend", shape(1, 1), fault=fault)


FRAMES, TOKENS, SPEECH = 55, 8, 256  # of a first chunk; of a spoken prompt
MEL, WAVE = (1, 80, FRAMES), (1, 256 * FRAMES)
#: Of twelve middle blocks, which are alike.
SHALLOW_FLOW = replace(FlowConfig(), num_mid_blocks=1)


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Makes an audio engine on a fake device; fake arrays that were copied to the host hold zeros."""
    pytest.importorskip("triton")

    def numpy(tensor: Tensor) -> np.ndarray[Any, Any]:
        assert tensor.device.type == "cpu"
        return np.zeros(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))

    def engine(kind: Callable[..., Any], config: object, *options: object) -> Any:
        # Fake parameters can neither move nor be read: they are made where they belong, and read as zero.
        with (
            device,
            mock.patch.object(nn.Module, "load_state_dict"),
            mock.patch.object(nn.Module, "to", lambda self, *args: self),
            mock.patch.object(Tensor, "__float__", return_value=0.0),
            mock.patch("vita_audio.engines.torch_cuda.device_arrays.Capturer", return_value=None),
            mock.patch("vita_audio.engines.torch_cuda.audio.audio_operations", return_value=KERNELS),
            mock.patch("vita_audio.engines.torch_cuda.speech_tokenizer.audio_operations", return_value=KERNELS),
            mock.patch("vita_audio.engines.torch_cuda.sensevoice.audio_operations", return_value=KERNELS),
        ):
            return kind(config, {}, device, *options)

    monkeypatch.setattr(Tensor, "numpy", numpy)
    with fake_cuda() as device:
        yield engine


def at_the_border(call: Callable[..., Any], *args: Any) -> tuple[list[Any], list[Any], int]:
    """Shapes copied to the device, shapes copied back, and kernels launched by a call; a tuple is an array's shape."""
    with launches(Dispatched(border=True)) as log:
        call(*(np.zeros(arg, np.float32) if isinstance(arg, tuple) else arg for arg in args))
    there, back = ([size for way, size in log.copies if way == one] for one in ("to device", "to host"))
    return there, back, len(log.kernels)


#: Method -> its inputs and the kernels it launches; a solve is one step. PyTorch without CUDA lays the result of a
#: convolution out anew, a copy each that a GPU does not make: (kernels, of them such copies). They may only go down.
CAPTURED: dict[str, tuple[type, tuple[Any, ...], tuple[int, int]]] = {
    "condition": (TorchCudaFlow, ((1, TOKENS), (1, FRAMES)), (172, 0)),
    "solve": (TorchCudaFlow, (MEL, MEL, MEL, (0.0, 1.0)), (659, 37)),
    "f0": (TorchCudaVocoder, (MEL,), (13, 0)),
    "synthesize": (TorchCudaVocoder, (MEL, WAVE), (201, 54)),
}


@pytest.mark.parametrize("precision", ["tf32", "fp16", "bf16"])
@pytest.mark.parametrize("name", CAPTURED)
def test_captured_audio_never_waits_for_the_host(make: Callable[..., Any], name: str, precision: str) -> None:
    """And launches no more kernels than before; half precision adds four casts to a step."""
    kind, inputs, (most, copies) = CAPTURED[name]
    engine = make(kind, FlowConfig() if kind is TorchCudaFlow else VocoderConfig(), precision)
    dtype = torch.int64 if name == "condition" else torch.float32
    given = [torch.empty(i, dtype=dtype, device=DEVICE) if isinstance(i[0], int) else i for i in inputs]
    with launches(Dispatched(border=True)):
        getattr(engine, name)(*given)  # what is made once
    with launches(Dispatched()) as log:
        getattr(engine, name)(*given)
    casts = 4 if name == "solve" and precision != "tf32" else 0
    assert 0 < len(log.kernels) <= most + casts - (copies if DEVICE.type == "cuda" else 0)


@pytest.mark.parametrize("streams", [1, 8])
def test_a_decode_is_two_programs_with_a_copy_up_for_each_and_one_down(make: Callable[..., Any], streams: int) -> None:
    """And beside what the engines launch, as many kernels for a batch of any size, of which the source is half."""
    flow, vocoder = make(TorchCudaFlow, SHALLOW_FLOW), make(TorchCudaVocoder, VocoderConfig())
    decoder = StreamingDecoder(flow, vocoder)
    states = [decoder.init(seed) for seed in range(streams)]
    for state in states:
        decoder.feed(state, [0] * 20)
    flow.condition = lambda tokens, frame_token: torch.empty((streams, 80, frame_token.shape[1]), device=DEVICE)
    flow.solve = lambda x, mu, cond, times: x
    vocoder.f0 = lambda mel: mel[:, 0]
    vocoder.synthesize = lambda mel, source: source
    for _ in range(2):  # at 8 and 20 tokens
        with launches(Dispatched(border=True)) as log:
            decoder.start(states)
        assert [way for way, _ in log.copies] == ["to device", "to device", "to host"]
        assert len(log.kernels) <= 90


@pytest.mark.parametrize("program", ["_make_mel", "_make_pcm"])
def test_what_is_captured_of_a_decode_never_waits_for_the_host(make: Callable[..., Any], program: str) -> None:
    """The whole function, engines and state and all, is on the device."""
    decoder = StreamingDecoder(make(TorchCudaFlow, SHALLOW_FLOW), make(TorchCudaVocoder, VocoderConfig()))
    chunk = VocoderGeometry(f0=43, before=0, source=38, wave=38)
    rows = {
        "_make_mel": window_shapes(decoder._buffers, TOKENS, FRAMES, decoder.config, 80),
        "_make_pcm": chunk_shapes(chunk, 9),
    }[program]
    given = {name: torch.empty((4, *row.shape), dtype=_torch_type(row), device=DEVICE) for name, row in rows.items()}
    given["f0_frames"] = torch.empty(chunk.source, dtype=torch.int64, device=DEVICE)
    function = getattr(decoder, program)._function
    with launches(Dispatched(border=True)):
        function(given)  # what is made once
    with launches(Dispatched()) as log:
        function(given)
    assert len(log.kernels) > 100


@pytest.mark.parametrize("kind", [TorchFlow, TorchCudaFlow])
def test_flow_conditions_with_three_copies(make: Callable[..., Any], kind: type) -> None:
    flow = make(kind, SHALLOW_FLOW)
    there, back, _ = at_the_border(flow.condition, np.zeros((1, TOKENS), np.int64), np.zeros(FRAMES, np.int64))
    assert (there, back) == ([(1, TOKENS), (FRAMES,)], [MEL])


def test_the_reference_solves_with_a_copy_for_the_time_of_each_step(make: Callable[..., Any]) -> None:
    there, back, _ = at_the_border(make(TorchFlow, SHALLOW_FLOW).solve, MEL, MEL, MEL, [0.0, 0.3, 0.6, 1.0])
    assert (there, back) == ([MEL, MEL, MEL, (1,), (1,), (1,)], [MEL])


@pytest.mark.parametrize("steps", [3, 1])
def test_flow_solves_on_the_device(make: Callable[..., Any], steps: int) -> None:
    """Beside the inputs only the times are copied, once."""
    flow, times, inputs = make(TorchCudaFlow, SHALLOW_FLOW), [i / steps for i in range(steps + 1)], [MEL, MEL, MEL]
    for expected in ([*inputs, (steps,)], inputs):
        there, back, _ = at_the_border(flow.solve, MEL, MEL, MEL, times)
        assert (there, back) == (expected, [MEL])


def test_flow_answers_a_velocity_with_five_copies(make: Callable[..., Any]) -> None:
    there, back, _ = at_the_border(make(TorchFlow, SHALLOW_FLOW).velocity, MEL, MEL, MEL, 0.5)
    assert (there, back) == ([MEL, MEL, MEL, (1,)], [MEL])


@pytest.mark.parametrize("kind", [TorchVocoder, TorchCudaVocoder])
def test_vocoder_copies_its_inputs_and_outputs_only(make: Callable[..., Any], kind: type) -> None:
    vocoder = make(kind, VocoderConfig())
    there, back, _ = at_the_border(vocoder.f0, MEL)
    assert (there, back) == ([MEL], [(1, FRAMES)])
    there, back, _ = at_the_border(vocoder.synthesize, MEL, WAVE)
    assert (there, back) == ([MEL, WAVE], [WAVE])


def test_reference_speech_tokenizer_copies_its_inputs_and_outputs_only(make: Callable[..., Any]) -> None:
    tokenizer = make(TorchSpeechTokenizer, SpeechTokenizerConfig())
    there, back, kernels = at_the_border(tokenizer.tokens, (128, SPEECH), SPEECH)
    assert (there, back) == ([(1,), (128, SPEECH)], [(SPEECH // 8,)])
    assert kernels <= 360


#: Two of 16 layers, which are alike. Kernels of a layer, and beside the layers; they may only go down.
SHALLOW_SPEECH = SpeechTokenizerConfig(quantize_position=2)
LAYER_KERNELS, OTHER_KERNELS = 10, 19


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("before", [0, 3])
def test_captured_speech_blocks_never_wait_for_the_host(make: Callable[..., Any], before: int, precision: str) -> None:
    tokenizer = make(TorchCudaSpeechTokenizer, SHALLOW_SPEECH, precision)
    rows = tokenizer._inputs(2, before)
    given = {name: torch.empty(row.shape, dtype=_torch_type(row), device=DEVICE) for name, row in rows.items()}
    with launches(Dispatched()) as log:
        ids = tokenizer._program._function(given)
    assert ids.shape == (2, 50)
    casts = 2 if precision == "bf16" else 0
    assert 0 < len(log.kernels) <= SHALLOW_SPEECH.layers * (LAYER_KERNELS + casts) + OTHER_KERNELS + casts


@pytest.mark.parametrize("pieces", [1, 2])
def test_blocks_of_speech_are_a_copy_up_and_one_down(make: Callable[..., Any], pieces: int) -> None:
    tokenizer = make(TorchCudaSpeechTokenizer, SHALLOW_SPEECH)
    with launches(Dispatched(border=True)) as log:
        clips = [(np.full((128, 800), i, np.float32), 700) for i in range(pieces)]
        assert [len(ids) for ids in tokenizer.tokens_of(clips)] == [88] * pieces
    assert [way for way, _ in log.copies] == ["to device", "to host"] * 2


#: Two stacks of a layer each, of 50 and 20. Kernels of a layer, and beside the layers; they may only go down.
SHALLOW_SENSEVOICE = SenseVoiceConfig(num_blocks=2, tp_blocks=1)
CLIP_LAYER_KERNELS, OTHER_CLIP_KERNELS = 12, 12


def sensevoice(make: Callable[..., Any], *options: object) -> Any:
    tables = {name: torch.zeros(560, device="cpu") for name in ("feature_shift", "feature_scale")}
    return make(lambda config, _, *rest: TorchCudaSenseVoice(config, tables, *rest), SHALLOW_SENSEVOICE, *options)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_captured_clips_never_wait_for_the_host(make: Callable[..., Any], precision: str) -> None:
    engine = sensevoice(make, precision)
    rows = engine._inputs(128)
    given = {name: torch.empty(row.shape, dtype=_torch_type(row), device=DEVICE) for name, row in rows.items()}
    with launches(Dispatched()) as log:
        embeddings = engine._program._function(given)
    assert embeddings.shape == (1, 128, 3584)
    casts = 3 * 2 + 3 if precision == "bf16" else 0
    assert 0 < len(log.kernels) <= 3 * CLIP_LAYER_KERNELS + OTHER_CLIP_KERNELS + casts


def test_a_clip_is_a_copy_up_and_one_down(make: Callable[..., Any]) -> None:
    engine = sensevoice(make)
    with launches(Dispatched(border=True)) as log:
        assert engine.embeddings(np.zeros((30, 560), np.float32)).shape == (34, 3584)
    assert [way for way, _ in log.copies] == ["to device", "to host"]


@pytest.mark.parametrize(
    "fault",
    [lambda x: x.mean().item(), lambda x: float(x.mean()), lambda x: x.nonzero(), lambda x: x + HOST_NUMBER],
    ids="item float nonzero host_number".split(),
)
def test_a_wait_of_an_audio_engine_is_found(make: Callable[..., Any], fault: Callable[[Tensor], object]) -> None:
    vocoder = make(TorchCudaVocoder, VocoderConfig())
    f0 = vocoder._model.f0
    vocoder._model.f0 = lambda mel: (fault(mel), f0(mel))[1]  # type: ignore[method-assign]
    with pytest.raises(HostSynchronisation):
        at_the_border(vocoder.f0, MEL)


def test_one_more_copy_of_an_audio_engine_is_noted(make: Callable[..., Any]) -> None:
    vocoder = make(TorchCudaVocoder, VocoderConfig())
    f0 = vocoder._model.f0
    vocoder._model.f0 = lambda mel: f0(mel.cpu().to(mel.device))  # type: ignore[method-assign]
    there, back, _ = at_the_border(vocoder.f0, MEL)
    assert (there, back) == ([MEL, MEL], [MEL, (1, FRAMES)])
