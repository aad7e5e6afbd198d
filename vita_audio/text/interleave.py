"""How training data interleaves the text and the audio of one answer (docs/audio.md 6.1)."""

from __future__ import annotations

from collections.abc import Sequence


def interleave(ids: Sequence[int], ratio: Sequence[int], begin_of_audio: int, end_of_audio: int) -> list[int]:
    """Cut text and audio into chunks and alternate them: text, begin, audio, end, text, begin, audio, end, ...

    Args:
        ids: one answer, "...text... begin audio end ...text...", with at most one audio run.
        ratio: t1, a1, t2, a2, ...: text chunks of t ids, audio chunks of a - 2 codes (a counts the two tags); the last
            pair repeats.
        begin_of_audio, end_of_audio: the two tags.

    Returns:
        The interleaved ids. When text or audio runs out, the last chunk of the other holds all that remains of it. An
        answer with only text or only audio stays as it is.

    Raises:
        ValueError: a ratio without at least 1 text id and 1 audio code in each pair, or tags that do not frame one run.
    """
    if not ratio or len(ratio) % 2 or min(ratio[::2]) < 1 or min(ratio[1::2]) < 3:
        raise ValueError(f"ratio {list(ratio)} is not a list of pairs t >= 1, a >= 3 (a counts the two audio tags)")
    begins, ends = list(ids).count(begin_of_audio), list(ids).count(end_of_audio)
    if (begins, ends) == (0, 0):
        return list(ids)
    if (begins, ends) != (1, 1):
        raise ValueError(f"an answer holds one audio run, not {begins} begin and {ends} end tags")
    begin, end = list(ids).index(begin_of_audio), list(ids).index(end_of_audio)
    if end < begin:
        raise ValueError(f"the end tag (index {end}) comes before the begin tag (index {begin})")

    text, audio = [*ids[:begin], *ids[end + 1 :]], list(ids[begin + 1 : end])
    if not text or not audio:
        return list(ids)
    text_chunks, audio_chunks = _chunks(text, ratio[::2]), _chunks(audio, [size - 2 for size in ratio[1::2]])
    blocks = min(len(text_chunks), len(audio_chunks))
    result: list[int] = []
    for text_chunk, audio_chunk in zip(_gather(text_chunks, blocks), _gather(audio_chunks, blocks), strict=True):
        result += [*text_chunk, begin_of_audio, *audio_chunk, end_of_audio]
    return result


def _chunks(ids: list[int], sizes: Sequence[int]) -> list[list[int]]:
    """Cut `ids` into chunks of the given sizes; the last size repeats."""
    chunks: list[list[int]] = []
    start = 0
    while start < len(ids):
        size = sizes[min(len(chunks), len(sizes) - 1)]
        chunks.append(ids[start : start + size])
        start += size
    return chunks


def _gather(chunks: list[list[int]], count: int) -> list[list[int]]:
    """The first `count` chunks, with all later ones joined to the last of them."""
    return [*chunks[: count - 1], [token for chunk in chunks[count - 1 :] for token in chunk]]
