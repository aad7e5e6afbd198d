"""What makes the tokenizer's codes mean something: heads that read text and sound from them, dropped at export."""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Speech has more letters a second than codes (12.5), so each code speaks for four steps of the CTC.
CTC_STEPS_PER_TOKEN = 4
LETTERS = " 'abcdefghijklmnopqrstuvwxyz"  # the CTC's blank is 0, letter i is i + 1


def letter_ids(text: str) -> list[int]:
    """CTC targets of a text: lower case, everything but letters, spaces and apostrophes is a space."""
    plain = re.sub(r"[^a-z']+", " ", text.lower()).strip()
    return [LETTERS.index(letter) + 1 for letter in plain]


def read_letters(scores: Tensor) -> list[int]:
    """Greedy reading of CTC scores [steps, letters + 1]: repeats and blanks removed."""
    return [letter for letter in torch.unique_consecutive(scores.argmax(-1)).tolist() if letter]


class _Context(nn.Module):
    """Two residual convolutions over neighbouring tokens: [B, width, n] -> [B, width, n], zero where not valid."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(width, width, kernel, padding=kernel // 2) for _ in range(2))

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        for conv in self.convs:
            x = (x + F.gelu(conv(x))) * valid[:, None]
        return x


class RecognitionHead(nn.Module):
    """Codes -> letter scores for a CTC loss: no norm in front, so that states cannot shrink for free."""

    def __init__(self, code_width: int, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(code_width, width)
        self.context = _Context(width, 5)
        self.steps = nn.Linear(width, CTC_STEPS_PER_TOKEN * width)
        self.smooth = nn.Conv1d(width, width, 5, padding=2)
        self.letters = nn.Linear(width, len(LETTERS) + 1)

    def forward(self, codes: Tensor, valid: Tensor) -> Tensor:
        """codes [B, n, code_width], valid [B, n] -> scores [B, 4 n, letters + 1]."""
        x = self.context(self.inner(codes).transpose(1, 2) * valid[:, None], valid)
        x = F.gelu(self.steps(x.transpose(1, 2)))
        x = x.unflatten(2, (CTC_STEPS_PER_TOKEN, -1)).flatten(1, 2).transpose(1, 2)  # [B, width, 4 n]
        return self.letters(F.gelu(self.smooth(x)).transpose(1, 2))


class MelHead(nn.Module):
    """Codes -> the features they came from, so that they carry the sound as well."""

    def __init__(self, code_width: int, width: int, bands: int, frames_per_token: int) -> None:
        super().__init__()
        self.bands = bands
        self.inner = nn.Linear(code_width, width)
        self.context = _Context(width, 3)
        self.frames = nn.Linear(width, frames_per_token * bands)

    def forward(self, codes: Tensor, valid: Tensor) -> Tensor:
        """codes [B, n, code_width], valid [B, n] -> features [B, bands, frames_per_token * n]."""
        x = self.context(self.inner(codes).transpose(1, 2) * valid[:, None], valid)
        x = self.frames(F.gelu(x).transpose(1, 2))
        return x.unflatten(2, (-1, self.bands)).flatten(1, 2).transpose(1, 2)


def ctc_loss(scores: Tensor, steps: Tensor, texts: list[str]) -> Tensor:
    """CTC loss per letter: scores [B, S, letters + 1], valid steps [B] -> []; impossible rows count as zero."""
    ids = [letter_ids(text) for text in texts]
    lengths = torch.tensor([len(row) for row in ids])
    flat = torch.tensor([letter for row in ids for letter in row], dtype=torch.int64)
    log_probabilities = scores.float().log_softmax(-1).transpose(0, 1)
    losses = F.ctc_loss(
        log_probabilities, flat.to(scores.device), steps.cpu(), lengths, reduction="none", zero_infinity=True
    )
    return losses.sum() / lengths.sum().clamp(min=1).to(scores.device)
