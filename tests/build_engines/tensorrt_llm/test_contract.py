"""What the packer makes is what the networks read: names, types and shapes, against TensorRT-LLM's own definition.

Needs the dry run's requirements (docs/tensorrt_llm.md 8); skipped where they are not.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.engines.tensorrt_llm.block_manager import BlockManager
from vita_audio.engines.tensorrt_llm.layout import Layout, layout_for
from vita_audio.engines.tensorrt_llm.packer import Packer
from vita_audio.engines.tensorrt_llm.tensors import (
    MCTP_INPUTS,
    MCTP_STEP,
    PROMPT_TABLE,
    TensorSpec,
    backbone_inputs,
    backbone_step,
)

ROOT = Path(__file__).resolve().parents[3]
CONFIG = LanguageModelConfig(1024, 256, 512, 2 + 10, 4, 2, 10, 1024)
LIMITS = {"slots": 8, "context": 512, "max_num_tokens": 128, "candidates": 64, "head_first_id": 900}
LAYOUT, PLUS = (layout_for(CONFIG, **LIMITS, embedded=embedded) for embedded in (False, True))
TYPES = {"int32": "int32", "int64": "int64", "float": "float32", "bool": "bool", "bf16": "bfloat16"}

DEFINE = """
import json, sys
from build_engines.tensorrt_llm.networks import cpu_sources
cpu_sources.install()
from build_engines.tensorrt_llm.config_file import config_fields
from build_engines.tensorrt_llm.layout import Part
from build_engines.tensorrt_llm.networks.build import network
from build_engines.tensorrt_llm.networks.dry_run import define
from build_engines.tensorrt_llm.networks.options import NetworkOptions
from build_engines.tensorrt_llm.plan import Plan
from vita_audio.checkpoint.configs import LanguageModelConfig
fields = json.loads(sys.argv[1])
config, options = LanguageModelConfig(**fields["config"]), NetworkOptions(**fields["options"])
defined = {}
for part in ("backbone", "mctp"):
    plan = Plan(Part(part), config, head_first_id=options.head_first_id if part == "mctp" else 0)
    defined[part] = define(part, network(part, config_fields(plan), options), options).inputs
print("\\n" + json.dumps({p: [[t.name, t.dtype, t.shape, t.largest] for t in inputs] for p, inputs in defined.items()}))
"""


@pytest.fixture(scope="module", params=[LAYOUT, PLUS], ids=["base", "plus"])
def layout(request: pytest.FixtureRequest) -> Layout:
    return request.param


@pytest.fixture(scope="module")
def defined(layout: Layout) -> dict[str, list]:
    """[name, type, shape, largest shape] of each input of both networks."""
    if "TRTLLM_SRC" not in os.environ or importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("the dry run needs TRTLLM_SRC and tensorrt-rtx")
    options = {
        "max_batch_size": LAYOUT.slots,
        "max_seq_len": LAYOUT.context,
        "max_num_tokens": LAYOUT.max_num_tokens,
        "candidates": LAYOUT.candidates,
        "head_first_id": LAYOUT.head_first_id,
        "prompt_table_rows": layout.prompt_rows,
    }
    fields = json.dumps({"config": asdict(CONFIG), "options": options})
    command = [sys.executable, "-c", DEFINE, fields]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(made.stdout.splitlines()[-1])


def made_on_the_device(layout: Layout) -> dict[str, TensorSpec]:
    """Inputs that no packer makes (`device_state.py`)."""
    return {
        PROMPT_TABLE: TensorSpec("bfloat16", (layout.prompt_rows, layout.config.hidden_size)),
        "hidden_states_in": TensorSpec("bfloat16", ("tokens", layout.config.hidden_size)),
        "seen": TensorSpec("bool", ("streams", layout.head_rows)),
    }


@pytest.mark.parametrize(("part", "layers", "draws"), [("backbone", 2, 1), ("mctp", 10, 10)])
def test_inputs(layout: Layout, defined: dict[str, list], part: str, layers: int, draws: int) -> None:
    known = backbone_inputs(layout.embedded) if part == "backbone" else MCTP_INPUTS
    specs = backbone_step(layout.embedded) if part == "backbone" else MCTP_STEP
    specs = specs | made_on_the_device(layout)
    largest = {
        "streams": LAYOUT.slots,
        "sampled": LAYOUT.slots,
        "tokens": LAYOUT.max_num_tokens,
        "blocks": LAYOUT.blocks_per_slot,
        "context": LAYOUT.context,
        "layers": layers,
        "modules": 10,
        "draws": draws,
    }
    names = {name for name, *_ in defined[part]}
    assert known - names <= {"position_ids"}
    assert names <= known
    for name, dtype, shape, most in defined[part]:
        spec = specs[name]
        expected = [largest[d] if isinstance(d, str) else d for d in spec.shape]
        assert TYPES[dtype] == spec.dtype, name
        assert len(shape) == len(expected), name
        for size, limit, needed in zip(shape, most, expected, strict=True):
            assert size in (-1, needed), (name, shape, expected)
            assert limit >= needed, (name, most, expected)


def test_constants_are_of_the_network(layout: Layout, defined: dict[str, list]) -> None:
    """Every tensor the plugin wants as it was defined at the largest batch, constants included."""
    blocks = BlockManager(LAYOUT.slots, LAYOUT.blocks, LAYOUT.tokens_per_block, LAYOUT.blocks_per_slot)
    packer = Packer(layout, blocks, pool_pointer=0)
    for part, constants in (("backbone", packer.backbone_constants), ("mctp", packer.mctp_constants)):
        inputs = {name: (dtype, most) for name, dtype, _, most in defined[part]}
        for name, array in constants.items():
            dtype, most = inputs[name]
            assert array.dtype == np.dtype(TYPES[dtype]), name
            assert all(have <= limit for have, limit in zip(array.shape, most, strict=True)), name
