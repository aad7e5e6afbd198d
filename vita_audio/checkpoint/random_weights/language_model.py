"""Random weights of a language model of any size: a tensor is drawn when it is asked for, on any device."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.checkpoint.language_model import language_model_shapes
from vita_audio.contract.errors import EngineError
from vita_audio.text.vocabulary import Vocabulary

#: Attention scores of random rows spread by this squared: sharp enough that all of the context counts.
_QUERY_KEY_GAIN = 1.5
#: Logits spread by this: at temperature 1 a token has real competitors, and greedy does not sit on one.
_LOGIT_SPREAD = 4.0
#: An end token wins when its logit is this many spreads above the mean; others need to beat the whole vocabulary. Of
#: 42 requests of all tasks and modes half ended within 314 tokens, the shortest at 14, and 6 ran into a limit of 1024.
_END_SCORE = 2.8
#: Where streams should go on, logits of end tokens spread by this share of the others': they never come out.
_NO_END_SPREAD = 0.25
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


class RandomLanguageModel(Mapping[str, Tensor]):
    """Released keys -> random tensors under which values neither grow nor vanish and streams mix text and audio.

    Nothing is kept: a tensor is drawn at every look-up, the same one each time, whatever was read before it. Values
    depend on the kind of device (cpu, cuda) and on the type.

    Args:
        config: sizes.
        device: where tensors are drawn and left.
        seed: of all tensors.
        dtype: of all tensors; None is bfloat16 on a GPU and float32 on a CPU.
        vocabulary: whose audio and end tokens get their share; None leaves all ids alike.
        ends: whether streams end by themselves (in a few hundred tokens) or go on up to their limit.
    """

    def __init__(
        self,
        config: LanguageModelConfig,
        device: torch.device,
        seed: int = 0,
        dtype: torch.dtype | None = None,
        vocabulary: Vocabulary | None = None,
        ends: bool = True,
    ) -> None:
        self.shapes = language_model_shapes(config)
        self.dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
        self._device, self._seed, self._vocabulary, self._ends = device, seed, vocabulary, ends
        self._draw = torch.Generator(device)
        self._head = _EMBEDDING if config.tie_word_embeddings else _HEAD

    @property
    def outline(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Key -> shape and type: what a file of these tensors begins with."""
        return {key: (shape, self.dtype) for key, shape in self.shapes.items()}

    def __getitem__(self, key: str) -> Tensor:
        shape = self.shapes[key]
        if len(shape) == 1:
            start = torch.zeros if key.endswith("bias") else torch.ones
            return start(shape, device=self._device, dtype=self.dtype)
        digest = hashlib.sha256(f"{self._seed} {key}".encode()).digest()
        self._draw.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        tensor = torch.randn(shape, generator=self._draw, device=self._device, dtype=self.dtype)
        tensor.mul_(self._spread(key, shape[1]))
        if key == self._head and self._vocabulary is not None:
            self._give_shares(tensor, self._vocabulary)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def _spread(self, key: str, inputs: int) -> float:
        """Standard deviation of a matrix: 1 / sqrt(inputs) keeps the size of what passes through."""
        if key == self._head:
            return _LOGIT_SPREAD / math.sqrt(inputs)
        if key == _EMBEDDING:
            return 1.0
        gain = _QUERY_KEY_GAIN if ".q_proj." in key or ".k_proj." in key else 1.0
        return gain / math.sqrt(inputs)

    def _give_shares(self, head: Tensor, vocabulary: Vocabulary) -> None:
        """Scale rows [vocab, hidden] so that the best audio token is as likely the best of all as the best text."""
        first, codes = vocabulary.audio_offset, vocabulary.audio_codes
        head[first : first + codes] *= _usual_largest(vocabulary.text_tokens) / _usual_largest(codes)
        highest = _usual_largest(len(head))
        head[list(vocabulary.end_tokens)] *= highest / _END_SCORE if self._ends else _NO_END_SPREAD


def _usual_largest(count: int) -> float:
    """What the largest of `count` standard normal numbers usually is."""
    return torch.special.ndtri(torch.tensor(1 - 1 / count, dtype=torch.float64)).item()


def drawing_device(name: str) -> torch.device:
    """`--device` of a command: cpu, cuda or cuda:N. Raises EngineError for another, or a GPU that is not there."""
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,2})?", name):
        raise EngineError(f"--device: {name!r} is not valid: cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        seen = f"{count} GPUs, cuda:0 is the first" if count else "no GPU"
        raise EngineError(f"--device: {name!r} is not there: PyTorch sees {seen}; cpu always is")
    return device
