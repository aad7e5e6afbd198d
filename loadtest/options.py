"""All options of a run, defined once for locust's command line, its web UI and `python -m loadtest`."""

from __future__ import annotations

import argparse
import ipaddress
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loadtest.errors import wrong
from loadtest.histogram import MAX_MS
from loadtest.shapes import SHAPES, LoadPlan, Phase, load_plan
from loadtest.slo import Slo
from loadtest.workload import DEFAULT_MIX, UserProfile, parse_mix
from vita_audio.contract.modes import parse_mode

ROOT = Path(__file__).resolve().parent.parent
QUESTION = ROOT / "examples" / "question.wav"
_SLO = Slo()
LOOPS = ("open", "closed")
#: Beyond this it is not a load but a fault, of the generator first.
MAX_RATE_HZ, MAX_USERS, MAX_RUN_TIME_S = 1000.0, 10_000, 86_400.0
#: Streams may still run for so long at the end.
_LONGEST_DRAIN_S = 3600.0
#: The longest time to think, in medians.
_LONGEST_THINK = 5.0
#: A run of no stated length (locust's web UI): it lasts until it is stopped.
ENDLESS_S = MAX_RUN_TIME_S


@dataclass(frozen=True, slots=True)
class Settings:
    """One run, checked.

    Args:
        loop: "open": each user is a Poisson source of `source_rate_hz` requests, sent whether or not earlier ones have
            ended. "closed": each user sends its next request a while (`profile.think_s`) after the last one has ended.
        max_streams: streams one generator process may hold at once; a call beyond it is counted as failed.
        timeout_s: deadline of a stream. `prebuffer_s`: how long the player waits before it plays.
    """

    url: str
    loop: str = "open"
    users: int = 1
    source_rate_hz: float = 0.1
    shape: str = "constant"
    run_time_s: float = 60.0
    warm_up_s: float = 0.0
    seed: int = 1
    profile: UserProfile = field(default_factory=UserProfile)
    speech: Path = QUESTION
    timeout_s: float = 60.0
    prebuffer_s: float = 0.0
    max_streams: int = 500
    slo: Slo = field(default_factory=Slo)
    out: Path = Path("out/loadtest/run")
    note: str = ""
    allow_remote: bool = False
    fail_on_slo: bool = False

    def __post_init__(self) -> None:
        if self.loop not in LOOPS:
            raise wrong("--loop", self.loop, f"it is one of {', '.join(LOOPS)}")
        check_users(self.users)
        check_rate("--source-rate", self.source_rate_hz)
        if self.loop == "open":
            check_rate("--users times --source-rate", self.users * self.source_rate_hz)
        _check("--run-time", self.run_time_s, 1, MAX_RUN_TIME_S, "seconds")
        _check("--think", self.profile.think_s.median, 0, 3600, "seconds")
        _check("--turns", self.profile.turns.median, 2, 100, "turns")
        _check("--stream-timeout", self.timeout_s, 0.1, 3600, "seconds")
        _check("--prebuffer-ms", self.prebuffer_s * 1e3, 0, 10_000, "ms")
        _check("--max-streams", self.max_streams, 1, 10_000, "streams")
        _check("--barge-in", self.profile.barge_in, 0, 1, "(a share)")
        _check("--slow-readers", self.profile.slow, 0, 1, "(a share)")
        _check("--slo-ttfa-p95-ms", self.slo.ttfa_p95_ms, 0, MAX_MS, "ms")
        _check("--slo-underrun-rate", self.slo.underrun_rate, 0, 1, "(a share)")
        _check("--slo-loss-rate", self.slo.loss_rate, 0, 1, "(a share)")
        check_target(self.url, self.allow_remote)
        self.plan  # noqa: B018 - raises for a shape or a warm-up that does not fit

    @property
    def plan(self) -> LoadPlan:
        return load_plan(self.shape, self.run_time_s, self.warm_up_s)

    def rate_hz(self, phase: Phase) -> float | None:
        """Streams per second in a phase; None in a closed loop, where the server decides."""
        return phase.users(self.users) * self.source_rate_hz if self.loop == "open" else None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that locust does not have itself."""
    group = parser.add_argument_group("vita_audio", "what users do, and what they are promised")
    add = group.add_argument
    add("--loop", choices=LOOPS, default="open", help="open: users are Poisson sources; closed: they wait for answers")
    add("--source-rate", type=float, default=0.1, help="open loop: streams per second of each user")
    add(
        "--think",
        type=float,
        default=2.0,
        help="median seconds between two turns of a conversation, or requests of a user (closed loop)",
    )
    add("--turns", type=float, default=5.0, help="median turns of a conversation")
    add("--shape", choices=SHAPES, default="constant", help="how the load goes over the run time")
    add("--warm-up", type=float, default=0.0, help="seconds at the start that count for nothing")
    add("--seed", type=int, default=1, help="same seed, same requests and arrivals")
    add("--mix", default=",".join(f"{k}={v:g}" for k, v in DEFAULT_MIX.items()), help="weights of the scenarios")
    add("--mode", default="", help="decoding mode (default: the server's)")
    add("--barge-in", type=float, default=0.1, help="share of spoken answers the caller cuts short")
    add("--slow-readers", type=float, default=0.0, help="share of readers that pause at each response")
    add("--answer-tokens", type=float, default=150, help="median of MAX_TOKENS")
    add("--speech", default=str(QUESTION), help="a recording, or a folder of them, that callers speak with")
    add("--stream-timeout", type=float, default=60.0, help="deadline of a stream in seconds")
    add("--prebuffer-ms", type=float, default=0.0, help="how long the player waits before it plays")
    add("--max-streams", type=int, default=500, help="streams one generator process may hold at once")
    add("--slo-ttfa-p95-ms", type=float, default=_SLO.ttfa_p95_ms)
    add("--slo-underrun-rate", type=float, default=_SLO.underrun_rate)
    add("--slo-loss-rate", type=float, default=_SLO.loss_rate)
    add("--fail-on-slo", action="store_true", default=False, help="exit status 1 when the SLO was missed")
    add("--out", default="out/loadtest/run", help="folder of the report")
    add("--note", default="", help="free text for the report")
    add("--allow-remote", action="store_true", default=False, help="allow a target that is not this machine")
    # locust does not hand its --run-time to workers, which need it to know the phase they are in.
    add("--plan-seconds", type=float, default=0.0, help=argparse.SUPPRESS)


def settings_from(options: Any, url: str | None, users: int | None) -> Settings:
    """Checked settings from parsed options.

    Raises:
        LoadTestError, InvalidRequest: the first option that is wrong.
    """
    if not url:
        raise wrong("--host", url, "it is the address of the server", "for example localhost:8001")
    profile = UserProfile()
    profile = replace(
        profile,
        mix=parse_mix(options.mix),
        mode=parse_mode(options.mode).name if options.mode else None,
        barge_in=options.barge_in,
        slow=options.slow_readers,
        turns=replace(profile.turns, median=options.turns, most=max(20.0, 2 * options.turns)),
        think_s=replace(profile.think_s, median=options.think, most=_LONGEST_THINK * options.think),
    )
    _check("--answer-tokens", options.answer_tokens, 1, 100_000, "tokens")
    tokens = replace(profile.answer_tokens, median=options.answer_tokens, most=max(400.0, 2 * options.answer_tokens))
    return Settings(
        url=address(url),
        loop=options.loop,
        users=1 if users is None else users,
        source_rate_hz=options.source_rate,
        shape=options.shape,
        run_time_s=options.plan_seconds or ENDLESS_S,
        warm_up_s=options.warm_up,
        seed=options.seed,
        profile=replace(profile, answer_tokens=tokens),
        speech=Path(options.speech),
        timeout_s=options.stream_timeout,
        prebuffer_s=options.prebuffer_ms / 1e3,
        max_streams=options.max_streams,
        slo=Slo(options.slo_ttfa_p95_ms, options.slo_underrun_rate, options.slo_loss_rate),
        out=Path(options.out),
        note=options.note,
        allow_remote=options.allow_remote,
        fail_on_slo=options.fail_on_slo,
    )


def check_users(users: int) -> None:
    if not 1 <= users <= MAX_USERS:
        raise wrong("--users", users, f"it is from 1 to {MAX_USERS}")


def check_rate(option: str, rate_hz: float) -> None:
    if not (math.isfinite(rate_hz) and 0 < rate_hz <= MAX_RATE_HZ):
        raise wrong(option, rate_hz, f"it is above 0 and at most {MAX_RATE_HZ:g} streams per second")


def check_drain(drain_s: float) -> None:
    _check("--drain", drain_s, 0, _LONGEST_DRAIN_S, "seconds")


def address(url: str) -> str:
    """host:port, without what locust's web UI and other tools write around it."""
    return url.removeprefix("http://").removeprefix("grpc://").rstrip("/")


def check_target(url: str, allow_remote: bool, option: str = "--host") -> None:
    """A load test of a machine that is not ours is an attack: it takes a flag.

    Raises:
        LoadTestError: not host:port, or not on loopback and not allowed.
    """
    host, _, port = url.rpartition(":")
    host = host.strip("[]")
    if not host or "/" in host or not port.isdigit():
        raise wrong(option, url, "it has the form host:port", "for example localhost:8001")
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False  # a name: what it stands for may change between this check and the connection
    if not local and not allow_remote:
        raise wrong(option, url, "it is not on loopback", "add --allow-remote if that machine is yours to load")


def _check(option: str, value: float, least: float, most: float, unit: str) -> None:
    if not least <= value <= most:
        raise wrong(option, value, f"it is from {least:g} to {most:g} {unit}")
