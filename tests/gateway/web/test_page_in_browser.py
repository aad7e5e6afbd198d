"""The page in a real headless Chromium: typed and spoken turns, sound, interruption, errors, keyboard, phone, dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="the package playwright is not installed (extra test)")

from playwright.sync_api import Browser, Playwright, sync_playwright

from client_protocol_double import ProtocolDouble
from gateway.keys import Limits, new_key
from gateway.settings import Settings
from gateway_runs import running, served
from page_browser import CHROMIUM, Visit, chromium, question_and_silence
from vita_audio.contract.errors import ServerFull, to_wire

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def browser(playwright: Playwright, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Its microphone hears a question of 1.9 s, 3 s of silence, and so on."""
    file = question_and_silence(tmp_path_factory.mktemp("microphone") / "question.wav", 3.0)
    with chromium(playwright, file) as opened:
        yield opened


@pytest.fixture
def visit(browser: Browser, gateway_url: str) -> Iterator[Visit]:
    """Nothing of another machine is asked for, and nothing goes wrong in the page."""
    opened = Visit(browser, gateway_url)
    yield opened
    opened.check()
    opened.page.close()


def test_a_typed_turn_is_answered_with_text_and_sound(visit: Visit) -> None:
    visit.type("turn 10")
    visit.wait("document.querySelector('article.assistant small')?.textContent.includes('1.0 s')")
    assert visit.log("user") == [("turn 10", "")]
    ((text, small),) = visit.log("assistant")
    assert text.startswith("s0c0 é s0c1 é")
    assert small.startswith("first sound after ")
    assert small.endswith(" ms · 1.0 s")  # all of it was played
    visit.state("Ready")
    assert visit.page.input_value("#text") == ""


def test_the_text_is_there_while_it_comes_and_stop_is_silence_at_once(visit: Visit, double: ProtocolDouble) -> None:
    visit.type("turn 100 0.05")
    visit.wait("document.querySelector('article.assistant p')?.textContent.includes('s0c9')")
    visit.state("Speaking")
    visit.page.keyboard.press("Escape")
    visit.wait("document.querySelector('article.assistant small').textContent.includes('interrupted after')")
    (truncated,) = visit.of(visit.sent, "conversation.item.truncate")
    assert 100 < truncated["audio_end_ms"] < 5000
    assert visit.of(visit.sent, "response.cancel")
    assert "s0c90" not in visit.log("assistant")[0][0]
    assert visit.page.is_disabled("#stop")
    visit.type("turn 2")
    visit.wait("document.querySelectorAll('article.assistant').length === 2")
    assert double.inputs[-1]["HEARD"] == pytest.approx(truncated["audio_end_ms"] / 80, abs=1)


def test_what_is_written_interrupts_the_answer(visit: Visit) -> None:
    visit.type("turn 100 0.05")
    visit.state("Speaking")
    visit.type("turn 3")
    visit.wait("document.querySelectorAll('article.assistant small')[1]?.textContent.endsWith('0.3 s')")
    assert "interrupted after" in visit.log("assistant")[0][1]
    kinds = [event["type"] for event in visit.sent]
    assert kinds[-4:] == [
        *("response.cancel", "conversation.item.truncate"),
        *("conversation.item.create", "response.create"),
    ]


def test_an_answer_can_be_stopped_before_it_begins(visit: Visit) -> None:
    visit.type("hang")
    visit.state("Thinking…")
    assert visit.page.is_enabled("#stop")
    visit.page.keyboard.press("Escape")
    visit.state("Ready")
    assert visit.page.is_disabled("#stop")
    while not visit.of(visit.received, "response.done"):
        visit.page.wait_for_timeout(20)
    assert [event["type"] for event in visit.sent[-2:]] == ["response.create", "response.cancel"]
    assert visit.of(visit.received, "response.done")[0]["response"]["status"] == "cancelled"
    assert visit.page.is_disabled("#stop")


def test_what_is_written_interrupts_an_answer_that_has_not_begun(visit: Visit, double: ProtocolDouble) -> None:
    double.once["hang turn 3"] = "turn 3"
    visit.type("hang")
    visit.state("Thinking…")
    visit.type("turn 3")
    visit.wait("document.querySelector('article.assistant small')?.textContent.endsWith('0.3 s')")
    assert double.inputs[-1]["TEXT"] == "hang turn 3"
    assert not visit.of(visit.received, "error")
    visit.state("Ready")
    assert visit.page.is_disabled("#stop")


def test_spoken_turns_are_answered_and_speech_stops_the_answer(visit: Visit, double: ProtocolDouble) -> None:
    double.spoken = "turn 100 0.05"
    visit.page.click("#microphone")
    visit.wait("document.querySelectorAll('article.user').length === 2", 30)
    visit.wait("document.querySelector('article.assistant small').textContent.includes('interrupted after')")
    truncated = visit.of(visit.sent, "conversation.item.truncate")[0]
    assert 500 < truncated["audio_end_ms"] < 9000
    assert visit.of(visit.received, "input_audio_buffer.speech_started")
    assert not visit.of(visit.sent, "response.cancel")  # the gateway ends it by itself
    assert visit.page.get_attribute("#microphone", "aria-pressed") == "true"
    visit.page.click("#microphone")
    assert visit.page.get_attribute("#microphone", "aria-pressed") == "false"
    visit.page.wait_for_timeout(100)  # what was sent before is seen a little later
    count = len(visit.sent)
    visit.page.wait_for_timeout(300)
    assert not visit.of(visit.sent[count:], "input_audio_buffer.append")
    assert len(double.inputs[0]["AUDIO"]) > 16_000  # type: ignore[arg-type]


def test_the_mode_goes_with_the_conversation(visit: Visit, double: ProtocolDouble) -> None:
    visit.type("turn 1")
    visit.wait("document.querySelectorAll('article.assistant').length === 1")
    assert "MODE" not in double.inputs[-1]
    visit.page.select_option("#mode", "turbo")
    visit.type("turn 1")
    visit.wait("document.querySelectorAll('article.assistant').length === 2")
    assert double.inputs[-1]["MODE"] == "turbo"
    assert "HISTORY" not in double.inputs[-1]
    assert visit.page.inner_text(".note") == "A new conversation: what is above is forgotten."


def test_a_connection_that_is_left_while_it_is_made_keeps_nobody_waiting(visit: Visit, double: ProtocolDouble) -> None:
    visit.page.evaluate(_FIRST_SOCKET_HANGS)
    visit.type("turn 1")
    visit.state("Connecting…")
    visit.page.select_option("#mode", "turbo")
    visit.wait("document.querySelectorAll('article.assistant').length === 1")
    assert (double.inputs[-1]["TEXT"], double.inputs[-1]["MODE"]) == ("turn 1", "turbo")
    assert visit.problem() == ""


_FIRST_SOCKET_HANGS = """() => {
  const Real = WebSocket;
  class Hanging extends EventTarget {
    readyState = Real.CONNECTING;
    close() {
      setTimeout(() => this.dispatchEvent(new CloseEvent("close")));
    }
  }
  window.WebSocket = new Proxy(Real, {
    construct(target, given) {
      window.WebSocket = Real;
      return new Hanging();
    },
  });
}"""


def test_a_new_conversation_is_empty(visit: Visit, double: ProtocolDouble) -> None:
    visit.type("turn 1")
    visit.wait("document.querySelector('article.assistant small')?.textContent.endsWith('0.1 s')")
    visit.page.click("#anew")
    assert visit.log("user") == visit.log("assistant") == []
    visit.type("turn 1")
    visit.wait("document.querySelectorAll('article.assistant').length === 1")
    assert "HISTORY" not in double.inputs[-1]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (f"message-only {to_wire(ServerFull(4, 8))}", "All places are taken"),
        ("short", "went away in the middle"),
        ("fail", "That did not work"),
    ],
)
def test_a_failure_is_told_in_words(visit: Visit, script: str, words: str) -> None:
    visit.type(script)
    visit.wait("!document.getElementById('problem').hidden")
    assert words in visit.problem()
    visit.state("Ready")
    visit.page.click("#dismiss")
    assert visit.problem() == ""


def test_a_server_that_is_away_is_told_when_the_page_opens(browser: Browser) -> None:
    with served(Settings(servers=("localhost:1",))) as url:
        visit = Visit(browser, url)
        if not visit.problem():  # it was not asked yet
            visit.page.wait_for_timeout(1000)
            visit.page.reload()
        visit.state("Not connected")
        visit.wait("!document.getElementById('problem').hidden")
        assert visit.problem() == "The speech server cannot be reached. Is it running?"
        visit.check("503")
        visit.page.close()


def test_a_connection_that_is_lost_is_told_and_can_be_made_again(browser: Browser, double: ProtocolDouble) -> None:
    with running(Settings(servers=(double.url,))) as server:
        address = f"http://127.0.0.1:{server.port}"
        visit = Visit(browser, address)
        visit.type("turn 1")
        visit.wait("document.querySelectorAll('article.assistant').length === 1")
    visit.state("Not connected")
    assert "connection" in visit.problem()
    visit.page.click("#retry")
    visit.wait("document.querySelector('#problem span').textContent.includes('cannot be reached')")
    visit.check("ERR_CONNECTION_REFUSED")
    visit.page.close()


def test_a_key_is_asked_for_where_one_is_needed(browser: Browser, double: ProtocolDouble, tmp_path: Path) -> None:
    key, line = new_key("page", Limits())
    file = tmp_path / "keys"
    file.write_text(line + "\n")
    file.chmod(0o600)
    with served(Settings(servers=(double.url,), keys=file)) as url:
        visit = Visit(browser, url)
        visit.type("turn 1")
        visit.wait("!document.getElementById('key-form').hidden")
        assert visit.problem() == "An API key is needed."
        visit.page.fill("#key", "vita-wrong")
        visit.page.press("#key", "Enter")
        visit.wait("document.querySelector('#problem span').textContent === 'This API key is not known here.'")
        visit.page.fill("#key", key)
        visit.page.press("#key", "Enter")
        visit.state("Ready")
        assert visit.problem() == ""
        assert visit.page.input_value("#text") == "turn 1"  # what was written is not lost
        visit.page.press("#text", "Enter")
        visit.wait("document.querySelector('article.assistant small')?.textContent.endsWith('0.1 s')")
        visit.check("401", "WebSocket connection")
        visit.page.close()


@pytest.mark.parametrize(
    ("name", "words"),
    [("NotAllowedError", "is blocked"), ("NotFoundError", "No microphone was found"), ("NotReadableError", "in use")],
)
def test_why_there_is_no_microphone(visit: Visit, name: str, words: str) -> None:
    refuse = f"void (navigator.mediaDevices.getUserMedia = async () => {{ throw new DOMException('no', '{name}') }})"
    visit.page.evaluate(refuse)
    visit.page.click("#microphone")
    visit.wait("!document.getElementById('problem').hidden")
    assert words in visit.problem()
    assert visit.page.get_attribute("#microphone", "aria-pressed") == "false"


def test_two_clicks_open_one_microphone(visit: Visit) -> None:
    visit.page.evaluate(_SLOW_PERMISSION)
    visit.page.click("#microphone")
    visit.page.click("#microphone")
    visit.wait("document.getElementById('microphone').getAttribute('aria-pressed') === 'true'")
    visit.page.wait_for_timeout(500)
    assert visit.page.evaluate("streams.length") == 1
    visit.page.click("#microphone")
    assert visit.page.get_attribute("#microphone", "aria-pressed") == "false"
    assert visit.page.evaluate("streams[0].getTracks()[0].readyState") == "ended"


_SLOW_PERMISSION = """() => {
  window.streams = [];
  const devices = navigator.mediaDevices;
  const open = devices.getUserMedia.bind(devices);
  devices.getUserMedia = async (wanted) => {
    await new Promise((resolve) => setTimeout(resolve, 500));
    const stream = await open(wanted);
    streams.push(stream);
    return stream;
  };
}"""


def test_everything_is_reached_by_the_keyboard(visit: Visit) -> None:
    reached = []
    visit.page.focus("body")
    for _ in range(6):
        visit.page.keyboard.press("Tab")
        reached.append(visit.page.evaluate("document.activeElement.id"))
    assert reached == ["mode", "anew", "log", "microphone", "text", "send"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
def test_it_fits_phones_and_both_colour_schemes(browser: Browser, gateway_url: str, scheme: str, width: int) -> None:
    visit = Visit(browser, gateway_url, viewport={"width": width, "height": 640}, color_scheme=scheme)
    visit.type("turn 1 " + "0" * 300)
    visit.wait("document.querySelectorAll('article.user').length === 1")
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    assert visit.page.evaluate("document.documentElement.scrollHeight") <= 640
    for box in ("#microphone", "#send", "#stop", "#mode", "#anew"):
        size = visit.page.locator(box).bounding_box()
        assert size is not None
        assert size["height"] >= 44  # a finger
    # The contrast of text, by WCAG 2: 4.5 to 1 at least.
    for selector in ("article.user p", "#state", "#hint", "#send", "#anew"):
        assert visit.page.evaluate(_CONTRAST, selector) >= 4.5, selector
    visit.page.close()


_CONTRAST = """selector => {
  const light = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let behind = document.querySelector(selector);
  const front = light(getComputedStyle(behind).color);
  while (/rgba\\(.*, 0\\)|transparent/.test(getComputedStyle(behind).backgroundColor)) behind = behind.parentElement;
  const back = light(getComputedStyle(behind).backgroundColor);
  return (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
}"""


@pytest.mark.server
def test_ten_spoken_turns_with_interruptions(playwright: Playwright, real_gateway_url: str, tmp_path: Path) -> None:
    """A real server; the question is asked again and again, often into its own answer. 40 s: sound takes its time."""
    with chromium(playwright, question_and_silence(tmp_path / "question.wav", 1.6)) as browser:
        visit = Visit(browser, real_gateway_url)
        visit.page.click("#microphone")
        visit.wait("document.querySelectorAll('article.user').length === 11", 120)
        visit.page.click("#microphone")
        visit.page.click("#stop", force=True)
        assert visit.problem() == ""
        answers = visit.log("assistant")
        assert len(answers) >= 5  # one that was interrupted before its first sound has no entry
        assert any("interrupted after" in small for _, small in answers)
        assert sum("first sound after" in small for _, small in answers) >= 3
        assert len(visit.of(visit.received, "conversation.item.input_audio_transcription.completed")) >= 8
        sent_s: dict[str, float] = {}
        for event in visit.of(visit.received, "response.output_audio.delta"):
            sent_s[event["item_id"]] = sent_s.get(event["item_id"], 0) + len(event["delta"]) * 3 / 4 / 48_000
        cuts = visit.of(visit.sent, "conversation.item.truncate")
        assert cuts
        assert all(cut["audio_end_ms"] <= sent_s[cut["item_id"]] * 1000 + 1 for cut in cuts)
        assert not visit.of(visit.received, "error")
        visit.check()
