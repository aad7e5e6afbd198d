"""The decoding service with the real vocabulary and detokeniser: text arrives whole, whatever the messages cut."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decoding_doubles import FlowDouble, VocoderDouble
from vita_audio.checkpoint.random_weights.tokenizer import write_tokenizer
from vita_audio.contract.messages import Delta, State, Status
from vita_audio.contract.rates import output_samples
from vita_audio.decoding.decoder import StreamingDecoder
from vita_audio.decoding.served_stream import DecodedChunk
from vita_audio.decoding.service import DecodingService
from vita_audio.text.tokenizer import TextTokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, merges=200, audio_codes=64, seed=0)
    return TextTokenizer(folder / "tokenizer.json")


@given(st.text(max_size=20), st.lists(st.integers(0, 80), max_size=6))
@settings(max_examples=20, deadline=None)
def test_text_and_audio_of_an_interleaved_stream(tokenizer: TextTokenizer, text: str, cuts: list[int]) -> None:
    vocabulary = tokenizer.vocabulary
    words = tokenizer.encode(text)
    ids: list[int] = []
    for position, word in enumerate(words):  # an audio block after each text token, also within a character
        block = vocabulary.audio_ids([position % 64] * 4)
        ids += [word, vocabulary.begin_of_audio, *block, vocabulary.end_of_audio]
    ids.append(vocabulary.im_end)
    answers: list[DecodedChunk] = []
    complete = threading.Event()

    def take(chunk: DecodedChunk) -> None:
        answers.append(chunk)
        if chunk.status.final:
            complete.set()

    service = DecodingService(
        StreamingDecoder(FlowDouble(), VocoderDouble()), vocabulary, tokenizer.detokenizer, notify=lambda message: None
    )
    edges = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    for index in range(len(edges) - 1):
        state: State = "done" if index == len(edges) - 2 else "running"
        service.submit(Delta(Status("s", index, state), ids[edges[index] : edges[index + 1]]), take)
    assert complete.wait(10)
    service.close()
    assert sum(chunk.complete for chunk in answers) == len(edges) - 1
    assert "".join(chunk.text for chunk in answers) == tokenizer.decode(words)
    assert [int(token) for chunk in answers for token in chunk.tokens] == ids
    assert sum(len(chunk.pcm) for chunk in answers) == output_samples(4 * len(words))
