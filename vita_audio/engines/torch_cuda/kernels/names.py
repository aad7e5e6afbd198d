"""Names by which kernels of a torch_cuda engine are switched off. No PyTorch here: the launcher reads them too."""

from __future__ import annotations

from vita_audio.contract.errors import EngineError

#: "pdl" is programmatic dependent launch: a kernel may begin before the one ahead of it has ended.
NAMES = ("norm", "enter", "rotate", "gate", "linear", "draw", "attention", "pdl")
#: Of the audio networks.
AUDIO_NAMES = ("layer_norm", "group_norm", "snake")


def kernel_names(text: str) -> frozenset[str]:
    """Reads names between commas: "draw,gate". Raises EngineError for a name that is unknown."""
    names = frozenset(name.strip() for name in text.split(",") if name.strip())
    known = (*NAMES, *AUDIO_NAMES)
    if unknown := sorted(names - set(known)):
        raise EngineError(f"{', '.join(map(repr, unknown))} is not valid: names between commas of {', '.join(known)}")
    return names
