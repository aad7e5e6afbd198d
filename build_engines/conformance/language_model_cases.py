"""Golden cases of the language model as they are stored, and two mistakes with speech that they have to notice."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor

from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.contract.messages import GenerationSettings
from vita_audio.engines.interface import Embedded, Floats
from vita_audio.generation.request import GenerationRequest

#: Made on purpose: speech is left out; modules of MCTP read rows of speech, not the ids there.
Mistake = Literal["no_speech", "speech_in_mctp"]
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Case:
    """`spans` [start, stop) of the prompt belong to `clips`, of a Plus checkpoint; `embedded` is what stands there.

    `robust`: the tokens stay when the embeddings are computed anew, with another rounding.
    """

    label: str
    prompt: Sequence[int]
    pattern: tuple[int, ...]
    repetition_penalty: float
    tokens: Sequence[int]
    clips: Sequence[str] = ()
    spans: Sequence[tuple[int, int]] = ()
    embedded: Embedded | None = None
    robust: bool = False

    def with_speech(self, rows: Sequence[Floats]) -> Case:
        """With other embeddings, [stop - start, hidden] for each clip."""
        places = np.concatenate([np.arange(start, stop) for start, stop in self.spans])
        return replace(self, embedded=Embedded(places, np.concatenate(rows)))

    @property
    def request(self) -> GenerationRequest:
        """Greedy, as many tokens as are known."""
        sampling: dict[str, Any] = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 0}
        settings = GenerationSettings(
            task="text",
            mode="",
            pattern=self.pattern,
            max_tokens=len(self.tokens),
            repetition_penalty=self.repetition_penalty,
            **sampling,
        )
        return GenerationRequest(self.prompt, settings, self.embedded)


def read_cases(folder: Path, modules: int) -> list[Case]:
    """`greedy_tokens.json`, and `prompt_io.safetensors` beside it where prompts have speech.

    Files of the Plus variant hold several `runs` a prompt. Left out are patterns with more MCTP tokens in a row than
    there are modules, which are refused (docs/model.md).
    """
    stored = json.loads((folder / "greedy_tokens.json").read_text())
    io = folder / "prompt_io.safetensors"
    speech = load_file(io) if io.exists() else {}
    cases: list[Case] = []
    for fields in stored:
        for run in fields.get("runs", [fields]):
            if max(run["pattern"][1::2]) <= modules:
                cases.append(_case(f"{folder.name} {len(cases)}", fields, run, speech))
    return cases


def _case(number: str, fields: dict[str, Any], run: dict[str, Any], speech: Mapping[str, Floats]) -> Case:
    penalty, clips = run["repetition_penalty"], fields.get("clips", ())
    about = f"{', speech' if clips else ''}, [{','.join(map(str, run['pattern']))}], penalty {penalty}"
    spans = [(start, stop) for start, stop in fields.get("audio_spans", ())]
    case = Case(
        f"{number}: prompt {len(fields['prompt'])}{about}",
        fields["prompt"],
        tuple(run["pattern"]),
        penalty,
        run["tokens"],
        clips,
        spans,
        robust=run.get("robust", False),
    )
    return (
        case.with_speech([speech[f"{fields['name']}.audio{k}.embeddings"] for k in range(len(clips))])
        if clips
        else case
    )


def speech_as_vocabulary(
    config: LanguageModelConfig, tensors: Mapping[str, Tensor], cases: Sequence[Case]
) -> tuple[LanguageModelConfig, dict[str, Tensor], list[Case]]:
    """Every row of speech becomes an id of its own, which is how modules of MCTP come to read it.

    The new ids have logits of zero, so that they never come out.
    """
    changed, rows, size = [], [tensors[_EMBEDDING]], config.vocab_size
    for case in cases:
        assert case.embedded is not None
        prompt = np.array(case.prompt)
        prompt[case.embedded.places] = np.arange(size, size + len(case.embedded.places))
        size += len(case.embedded.places)
        rows.append(torch.from_numpy(case.embedded.rows))
        changed.append(replace(case, prompt=prompt.tolist(), embedded=None))
    head = torch.nn.functional.pad(tensors[_HEAD], (0, 0, 0, size - config.vocab_size))
    return replace(config, vocab_size=size), {**tensors, _EMBEDDING: torch.cat(rows), _HEAD: head}, changed
