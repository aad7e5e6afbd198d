"""The model repository against the code: names, types and shapes of config.pbtxt, thin adapters, profiles."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from server.backend import APART, ONE_PROCESS, TOGETHER
from vita_audio.contract.fields import ENSEMBLE, INPUTS, OUTPUTS

REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"
MODELS = sorted(path.parent.name for path in REPOSITORY.glob("*/config.pbtxt"))


def config(model: str, file: str = "config.pbtxt") -> model_config_pb2.ModelConfig:
    return text_format.Parse((REPOSITORY / model / file).read_text(), model_config_pb2.ModelConfig())


#: Name, datatype and shape of a tensor.
Spec = tuple[str, str, tuple[int, ...]]


def specs(tensors: list) -> list[Spec]:
    names = model_config_pb2.DataType.Name
    return [(t.name, names(t.data_type).removeprefix("TYPE_"), tuple(t.dims)) for t in tensors]


PUBLIC_INPUTS: list[Spec] = [(field.name, field.datatype, field.shape) for field in INPUTS]
PUBLIC_OUTPUTS: list[Spec] = [output[:3] for output in OUTPUTS]


def test_models_of_the_repository() -> None:
    assert set(MODELS) == {"prompt", *APART, *TOGETHER, "speech_tokenizer", "vita_audio"}
    for model in MODELS:
        assert config(model).name == model
        assert config(model).max_batch_size == 0


def test_the_ensemble_is_the_public_contract() -> None:
    public = config(ENSEMBLE)
    assert specs(public.input) == PUBLIC_INPUTS
    assert specs(public.output) == PUBLIC_OUTPUTS
    assert all(tensor.optional for tensor in public.input)
    # One space of names: an output called like an input would feed the first step again.
    assert not {name for name, *_ in PUBLIC_INPUTS} & {name for name, *_ in PUBLIC_OUTPUTS}


def test_prompt_takes_the_public_inputs_and_audio_decoder_gives_the_public_outputs() -> None:
    prompt = config("prompt")
    assert specs(prompt.input) == PUBLIC_INPUTS
    assert all(tensor.optional for tensor in prompt.input)
    assert specs(config("audio_decoder").output) == specs(config("delivery").output) == PUBLIC_OUTPUTS


def test_one_process_changes_the_steps_behind_prompt_only() -> None:
    apart, together = config(ENSEMBLE), config(ENSEMBLE, str(ONE_PROCESS))
    steps = [[step.model_name for step in each.ensemble_scheduling.step] for each in (apart, together)]
    assert steps == [["prompt", *APART], ["prompt", *TOGETHER]]
    assert apart.ensemble_scheduling.step[0] == together.ensemble_scheduling.step[0]
    for each in (apart, together):
        del each.ensemble_scheduling.step[:]
    assert apart == together


@pytest.mark.parametrize("file", ["config.pbtxt", str(ONE_PROCESS)])
def test_every_tensor_between_steps_has_one_type_and_shape(file: str) -> None:
    known = {name: rest for name, *rest in PUBLIC_INPUTS}
    for step in config(ENSEMBLE, file).ensemble_scheduling.step:
        inner = config(step.model_name)
        inputs = {name: rest for name, *rest in specs(inner.input)}
        outputs = {name: rest for name, *rest in specs(inner.output)}
        optional = {tensor.name for tensor in inner.input if tensor.optional}
        assert set(inputs) - set(step.input_map) <= optional
        for name, outer in step.input_map.items():
            assert inputs[name] == known[outer], (step.model_name, name)
        assert set(step.output_map) == set(outputs)
        known |= {outer: outputs[name] for name, outer in step.output_map.items()}


def test_who_streams() -> None:
    decoupled = {model for model in MODELS if config(model).model_transaction_policy.decoupled}
    assert decoupled == {*APART, *TOGETHER}
    # Their workers batch all streams and own their state: a second instance would not know the streams of the first.
    assert all(config(model).instance_group[0].count == 1 for model in decoupled)


@pytest.mark.parametrize(
    "model", [model for model in MODELS if (REPOSITORY / model / "configs" / "gpu.pbtxt").exists()]
)
def test_the_gpu_profile_changes_instances_only_and_keeps_triton_off_the_gpu(model: str) -> None:
    cpu, gpu = config(model), config(model, "configs/gpu.pbtxt")
    assert [group.kind for group in gpu.instance_group] == [model_config_pb2.ModelInstanceGroup.KIND_CPU]
    del cpu.instance_group[:], gpu.instance_group[:]
    assert cpu == gpu


def test_adapters_are_thin() -> None:
    for file in REPOSITORY.glob("*/1/model.py"):
        assert len(file.read_text().splitlines()) <= 45, file
