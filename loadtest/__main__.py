"""One command for a load test: `python -m loadtest --rate 2 --shape steps --run-time 150`, with the report at the end.

Checks everything first, then runs locust headless on `locustfile.py`. Options of the locustfile and of locust itself
(`--mix`, `--processes 2`, `--csv`, ...) are passed on, but for those that this command sets (`-t`, `-u`, `-s`, `-H`);
for the web UI and several machines call locust itself.
Exit codes: 0 the run is complete, 1 it ended early (with --fail-on-slo also: an SLO was missed), 2 a wrong option, 3 no
server.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys

from loadtest.child import child_environment
from loadtest.errors import LoadTestError, wrong
from loadtest.options import (
    MAX_RUN_TIME_S,
    ROOT,
    add_arguments,
    address,
    check_drain,
    check_rate,
    check_target,
    check_users,
    settings_from,
)
from loadtest.report.files import check_folder
from loadtest.workload import load_voices
from vita_audio.contract.errors import VitaError
from vita_client import Client

#: The open loop's sources; the rate is split between them. Enough for a shape's shares to come out whole.
SOURCES = 20
_DRAIN_S = 15.0
#: What this command sets itself for locust, and by which option.
_LOCUSTS = (
    (("-t",), "--run-time"), (("-s", "--stop-timeout"), "--drain"), (("-H", "--host"), "--url"),
    (("-u",), "--rate (open loop) or --users (closed loop)"),
)  # fmt: skip
#: What locust may take on top of the run and the drain before it is ended by force: starting, the report.
_GRACE_S = 120.0


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog="python -m loadtest", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--url", default="localhost:8001", help="the server's gRPC port")
    parser.add_argument("--rate", type=float, help="open loop: streams per second at full load (default 1)")
    parser.add_argument("--users", type=int, help="closed loop: callers at full load (default 4)")
    parser.add_argument("--run-time", type=float, default=60.0, help="seconds, warm-up included")
    parser.add_argument("--drain", type=float, default=_DRAIN_S, help="seconds streams may still run at the end")
    for flags, _ in _LOCUSTS:
        parser.add_argument(*flags, dest=flags[0], help=argparse.SUPPRESS)
    add_arguments(parser)
    options, _ = parser.parse_known_args(given)
    try:
        for flags, own in _LOCUSTS:
            if (value := getattr(options, flags[0])) is not None:
                raise wrong("/".join(flags), value, "it is an option of locust itself", f"use {own}")
        check_target(address(options.url), options.allow_remote, "--url")
        users, source_rate_hz = _load(options)
        if not 1 <= options.run_time <= MAX_RUN_TIME_S:
            raise LoadTestError(f"--run-time: {options.run_time:g} is not valid: it is from 1 to {MAX_RUN_TIME_S:g} s")
        check_drain(options.drain)
        options.plan_seconds, options.source_rate = options.run_time, source_rate_hz
        settings = settings_from(options, options.url, users)
        load_voices(settings.speech)
        check_folder(settings.out)
        with Client(settings.url) as client:
            health = client.health()
    except VitaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not health.ready:
        print(f"error: {health.reason}; start one with: make serve", file=sys.stderr)
        return 3
    command = [
        sys.executable, "-m", "locust", "-f", str(ROOT / "loadtest" / "locustfile.py"), "--headless", "--only-summary",
        "--host", settings.url, "--users", str(users), "--spawn-rate", str(min(users, 100)),
        "--plan-seconds", str(options.run_time), "--stop-timeout", f"{max(1, round(options.drain))}s",
        "--source-rate", repr(source_rate_hz), *_passed_on(given),
    ]  # fmt: skip
    return _run(command, options.run_time + options.drain + _GRACE_S)


def _load(options: argparse.Namespace) -> tuple[int, float]:
    """Users and streams per second of each.

    Raises:
        LoadTestError: the option that does not belong to this loop, or a wrong value.
    """
    if options.loop == "open":
        if options.users is not None:
            raise LoadTestError("--users: it belongs to --loop closed; the open loop takes --rate")
        rate_hz = 1.0 if options.rate is None else options.rate
        check_rate("--rate", rate_hz)
        return SOURCES, rate_hz / SOURCES
    if options.rate is not None:
        raise LoadTestError("--rate: it belongs to --loop open; the closed loop takes --users")
    users = 4 if options.users is None else options.users
    check_users(users)
    return users, options.source_rate


def _passed_on(given: list[str]) -> list[str]:
    """What locust reads itself: everything but this command's own options."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--url", "--rate", "--users", "--run-time", "--drain", "--source-rate"):
        own.add_argument(name)
    return own.parse_known_args(given)[1]


def _run(command: list[str], limit_s: float) -> int:
    """Locust as a child, ended by force after `limit_s`; Ctrl-C, SIGTERM and SIGHUP let it end streams and report."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, signal.default_int_handler)
    # Where this process is killed, Linux sends locust SIGINT, to which it listens also where a shell has this one
    # ignore it (in the background). Not SIGTERM: for that a headless locust has no handler while a shape runs.
    command = ["env", "--default-signal=INT", "setpriv", "--pdeathsig", "INT", *command]
    # A session of its own: Ctrl-C in a terminal must reach locust once, through us.
    child = subprocess.Popen(command, env=child_environment(), start_new_session=True)
    try:
        try:
            return child.wait(timeout=limit_s)
        except KeyboardInterrupt:
            child.send_signal(signal.SIGINT)
            return child.wait(timeout=_GRACE_S)
    except subprocess.TimeoutExpired as error:
        print(f"error: the load test did not end within {error.timeout:g} s and was ended by force", file=sys.stderr)
        return 1
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)  # workers too


if __name__ == "__main__":
    sys.exit(main())
