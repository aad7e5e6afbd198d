"""Names of the model: with a decoding mode at the end, for HTTP and Realtime."""

from __future__ import annotations

import pytest

from gateway.errors import GatewayError
from gateway.voices import MODEL, check_model, mode_of


@pytest.mark.parametrize("mode", ["vanilla", "balance", "boost", "turbo"])
def test_a_mode_at_the_end(mode: str) -> None:
    check_model(f"{MODEL}-{mode}")
    assert mode_of(f"{MODEL}-{mode}") == mode


def test_no_mode() -> None:
    check_model(MODEL)
    assert mode_of(MODEL) is None


@pytest.mark.parametrize("name", ["", "turbo", f"{MODEL}-", f"{MODEL}-fast", f"{MODEL}-turbo-turbo", f"x{MODEL}"])
def test_no_such_model(name: str) -> None:
    with pytest.raises(GatewayError, match="only vita-audio") as raised:
        check_model(name)
    assert (raised.value.code, raised.value.field) == ("model_not_found", "model")
