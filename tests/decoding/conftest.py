"""A decoding service for a test, closed after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from decoding_bench import Bench, make


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = make()
    yield bench
    bench.flow.open.set()
    bench.service.close()
