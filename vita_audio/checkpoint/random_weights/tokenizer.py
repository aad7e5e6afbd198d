"""The random-weight checkpoint's tokenizer: byte-level BPE in the Qwen2.5 layout, with control and audio tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from vita_audio.checkpoint.random_weights.text import sentences

CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_audio|>", "<|end_of_audio|>", "<|audio|>")
#: With these in place of the tokens that this project does not use, ids are those of the released checkpoints.
RELEASED_CONTROL_TOKENS = (
    *CONTROL_TOKENS[:3],
    *(f"<|reserved_{i}|>" for i in range(28)),
    *CONTROL_TOKENS[3:5],
    *(f"<|reserved_{i}|>" for i in range(28, 36)),
    CONTROL_TOKENS[5],
)
#: Of Plus checkpoints, after <|end_of_audio|>: its places are those of speech in the prompt.
CONTEXT_TOKEN = "<|context_of_audio|>"

#: Where text is cut before merging: contractions, words, single digits, punctuation, line breaks, blanks (as Qwen2.5).
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TRAINING_SENTENCES = 20_000
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_tokenizer(
    merges: int,
    audio_codes: int,
    seed: int,
    texts: Iterable[str] | None = None,
    text_tokens: int = 0,
    plus: bool = False,
) -> Tokenizer:
    """Train the BPE (at most `merges` merges) and add control tokens, then `audio_codes` contiguous audio tokens.

    Args:
        texts: what it is trained on; None is generated sentences drawn from `seed`.
        text_tokens: fill the BPE up to so many tokens with words that no text is cut into, and add the control tokens
            of the released checkpoints; 0 adds neither.
        plus: add the control token of Plus checkpoints.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + merges, initial_alphabet=alphabet, min_frequency=2, show_progress=False
    )
    tokenizer.train_from_iterator(sentences(_TRAINING_SENTENCES, seed) if texts is None else texts, trainer)
    if text_tokens:
        tokenizer = _filled(tokenizer, text_tokens)
    controls = control_tokens(text_tokens, plus)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in controls])
    tokenizer.add_tokens([AddedToken(f"<|audio_{i}|>", special=False, normalized=False) for i in range(audio_codes)])
    return tokenizer


def control_tokens(text_tokens: int, plus: bool) -> tuple[str, ...]:
    """In the order of their ids; arguments as `build_tokenizer`."""
    controls = RELEASED_CONTROL_TOKENS if text_tokens else CONTROL_TOKENS
    after = controls.index("<|end_of_audio|>") + 1
    return (*controls[:after], CONTEXT_TOKEN, *controls[after:]) if plus else controls


def _filled(tokenizer: Tokenizer, text_tokens: int) -> Tokenizer:
    """The same with `text_tokens` entries: no merge makes the new ones, so they only come out, as blank + number."""
    content = json.loads(tokenizer.to_str())
    vocab = content["model"]["vocab"]
    vocab |= {f"\u0120{i}": i for i in range(len(vocab), text_tokens)}  # U+0120 is the blank of byte-level BPE
    return Tokenizer.from_str(json.dumps(content))


def write_tokenizer(
    folder: Path,
    merges: int,
    audio_codes: int,
    seed: int,
    texts: Iterable[str] | None = None,
    text_tokens: int = 0,
    plus: bool = False,
) -> int:
    """Write `tokenizer.json` and `tokenizer_config.json`, arguments as above; returns the number of tokens."""
    tokenizer = build_tokenizer(merges, audio_codes, seed, texts, text_tokens, plus)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "additional_special_tokens": list(control_tokens(text_tokens, plus)),
        "chat_template": _CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return tokenizer.get_vocab_size(with_added_tokens=True)
