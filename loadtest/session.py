"""Ties a load test to locust: its options, its events, its messages between processes, its report at the end."""

from __future__ import annotations

import functools
import logging
import shlex
import sys
import time
from typing import Any

import gevent
import numpy as np
from grpc.experimental.gevent import init_gevent
from locust import LoadTestShape, argument_parser, events
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner
from numpy.typing import NDArray

from loadtest.clock import now_s
from loadtest.dispatcher import Dispatcher
from loadtest.generator import GeneratorLoad, GeneratorWatch
from loadtest.manifest import manifest
from loadtest.options import ENDLESS_S, Settings, add_arguments, settings_from
from loadtest.record import StreamRecord
from loadtest.report.files import write_report
from loadtest.report.page import page
from loadtest.report.summary import Run, summary
from loadtest.shapes import LoadPlan
from loadtest.slo import verdict
from loadtest.tally import Outbox, Tally
from loadtest.users import LoadUser
from loadtest.workload import UserRequest, UserTalk, load_voices
from vita_audio.contract.errors import VitaError
from vita_client import Client

logger = logging.getLogger("loadtest")

#: Messages between master and workers: "end your streams and report", and the report.
_DRAIN, _DRAINED = "vita_drain", "vita_drained"
#: A drained worker's last report may take this long after its streams have ended.
_MESSAGE_S = 10.0
#: A run is given up when for so long every stream that ended, and so many of them, found no server.
_GONE_S, _GONE_STREAMS = 10, 5
#: The manifest's questions have their own limits; they do not add up to this.
_MANIFEST_S = 30.0
#: Locust's own advice: not more users per second than this.
SPAWN_RATE = 100.0


class PlannedShape(LoadTestShape):
    """A `LoadPlan` as locust's load shape."""

    use_common_options = True

    def __init__(self, plan: LoadPlan, users: int) -> None:
        super().__init__()
        self._plan, self._users = plan, users

    def tick(self) -> tuple[int, float] | None:
        phase = self._plan.at(self.get_run_time())
        return None if phase is None else (phase.users(self._users), SPAWN_RATE)


class Session:
    """One locust process: a worker makes streams, a master collects and reports, a lone process does both.

    Attributes:
        settings, voices: of the run in progress; users read them.
    """

    settings: Settings

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self.voices: list[NDArray[np.float32]] = []
        self._dispatcher: Dispatcher | None = None
        self._total, self._outbox = Tally(), Outbox()
        self._generators: dict[str, GeneratorLoad] = {}
        self._about: gevent.Greenlet | None = None
        self._watch: GeneratorWatch | None = None
        self._start_s = self._end_s = 0.0  # 0: no run yet; it has not ended
        self._users = self._drained = 0
        self._stopped_because = ""

    @property
    def _makes_streams(self) -> bool:
        return not isinstance(self._environment.runner, MasterRunner)

    @property
    def _reports(self) -> bool:
        return not isinstance(self._environment.runner, WorkerRunner)

    def next_user_seed(self) -> str:
        """A seed of its own for each user of each process."""
        self._users += 1
        return f"{self.settings.seed}/{getattr(self._environment.runner, 'worker_index', 0)}/{self._users}"

    @property
    def running(self) -> bool:
        """Whether this process has a run to make streams for."""
        return self._dispatcher is not None

    def launch(self, planned: UserRequest | UserTalk, intended_s: float) -> gevent.Greenlet | None:
        """Start a stream; None when there is no run, or it is over."""
        return None if self._dispatcher is None else self._dispatcher.launch(planned, intended_s)

    # --- locust's events, in the order in which they come

    def init(self) -> None:
        """Check the options where they come from the command line; choose the shape; offer the report in the web UI."""
        environment, runner = self._environment, self._environment.runner
        # Gevent would print Ctrl-C before it acts on it, and lose it where nobody reads that: the terminal is closed.
        hub = gevent.get_hub()
        hub.NOT_ERROR = (*hub.NOT_ERROR, KeyboardInterrupt)
        if self._makes_streams:
            init_gevent()  # once in each process, after locust has forked its workers
        if isinstance(runner, WorkerRunner):
            # Locust 2.47 builds its whole command line anew for each option in each message that changes the load:
            # the worker's event loop, and every stream in it, would stand still for half a second.
            argument_parser.default_args_dict = functools.cache(argument_parser.default_args_dict)
            runner.register_message(_DRAIN, self._on_drain, concurrent=True)
            return
        if isinstance(runner, MasterRunner):
            runner.register_message(_DRAINED, self._on_drained)
        options = environment.parsed_options
        if environment.web_ui is None or (environment.host and options is not None and options.run_time):
            planned = options is not None and options.plan_seconds > 0
            settings = self._settings_or_exit()
            if planned or settings.shape != "constant":
                environment.shape_class = PlannedShape(settings.plan, settings.users)
                environment.shape_class.runner = runner
        if environment.web_ui is not None:
            environment.web_ui.app.add_url_rule(  # type: ignore[union-attr]
                "/vita", "vita", self._live_page
            )

    def test_start(self) -> None:
        try:
            settings = self._read_settings()
            voices = load_voices(settings.speech) if self._makes_streams else []
        except VitaError as error:  # written into the web UI's form: nothing is sent, and the UI stays
            logger.error(str(error))
            self._dispatcher, self._start_s = None, 0.0  # the report of the run before stays as it is
            gevent.spawn(self._environment.runner.stop)  # type: ignore[union-attr]
            return
        self.settings, self.voices = settings, voices
        self._total, self._outbox, self._generators, self._users, self._drained = Tally(), Outbox(), {}, 0, 0
        self._stopped_because, self._start_s, self._end_s = "", now_s(), 0.0
        if self._makes_streams:
            client, counter = Client(self.settings.url), self._total if self._reports else self._outbox
            self._dispatcher = Dispatcher(client, self.settings, self._start_s, counter, self._report_to_locust)
            self._watch = GeneratorWatch()
        if self._reports:
            self._about = gevent.spawn(self._describe)  # asks git and the server, which may take seconds
            gevent.spawn(self._give_up_without_server, self._start_s)

    def report_to_master(self, data: dict[str, Any]) -> None:
        data["vita"] = self._message()

    def worker_report(self, client_id: str, data: dict[str, Any]) -> None:
        self._take(client_id, data.get("vita") or {})

    def test_stopping(self) -> None:
        """Before locust stops its users: let the streams end, for at most --stop-timeout."""
        runner, limit_s = self._environment.runner, self._environment.stop_timeout or 0.0
        if not self._start_s:
            return
        self._end_s = self._end_s or now_s()  # no load is made from here on: rates end with it
        elapsed_s = self._end_s - self._start_s
        planned_s = self.settings.run_time_s
        if self._reports and not self._stopped_because and planned_s < ENDLESS_S and elapsed_s < planned_s - 1:
            self._stopped_because = f"stopped after {elapsed_s:.0f} s"
        if isinstance(runner, MasterRunner):
            waiting = len(runner.clients.all)
            runner.send_message(_DRAIN, {"limit_s": limit_s})
            end_s = now_s() + limit_s + _MESSAGE_S
            while self._drained < waiting and now_s() < end_s:
                gevent.sleep(0.1)
            if self._drained < waiting:
                self._stopped_because = (
                    f"{waiting - self._drained} of {waiting} workers did not report their last streams"
                )
        elif self._dispatcher is not None:
            self._dispatcher.drain(0.0 if isinstance(runner, WorkerRunner) else limit_s)

    def test_stop(self) -> None:
        """After the last stream: the report, and the exit code."""
        if self._watch is not None:
            self._watch.stop()
        if not self._reports or not self._start_s:
            return
        run = self._run()
        folder = write_report(self.settings.out, run)
        checks = verdict(run.tally.total(), self.settings.slo)
        for check in checks:
            logger.log(logging.INFO if check.kept else logging.WARNING, str(check))
        if not all(load.kept_up for load in run.generators.values()):
            logger.warning("the generator was too slow, its delay is in the figures: add --processes 2, or a machine")
        logger.info(f"report: {folder / 'report.html'}")
        if run.aborted:
            logger.error(f"the run is not complete: {run.aborted}")
        missed = self.settings.fail_on_slo and not all(check.kept for check in checks)
        self._environment.process_exit_code = 1 if missed or run.aborted else 0

    # --- between processes

    def _on_drain(self, environment: Environment, msg: Any) -> None:
        if self._dispatcher is not None:
            self._dispatcher.drain(msg.data["limit_s"])
        environment.runner.send_message(_DRAINED, self._message())  # type: ignore[union-attr]

    def _on_drained(self, environment: Environment, msg: Any) -> None:
        self._take(msg.node_id, msg.data)
        self._drained += 1

    def _message(self) -> dict[str, Any]:
        """What this worker has measured since its last message; empty before its first run."""
        if self._dispatcher is None or self._watch is None:
            return {}
        return {"streams": self._outbox.take(), "generator": self._watch.load.to_dict()}

    def _take(self, client_id: str, message: dict[str, Any]) -> None:
        if not message:
            return
        self._total.take_in(message["streams"])
        self._generators[client_id] = GeneratorLoad.from_dict(message["generator"])

    # --- the rest

    def _run(self) -> Run:
        """All that is known of the run so far."""
        if self._makes_streams and self._watch is not None:
            self._generators["this process"] = self._watch.load
        elapsed_s = min((self._end_s or now_s()) - self._start_s, self.settings.run_time_s)
        assert self._about is not None
        return Run(
            self._about.get(timeout=_MANIFEST_S),
            self.settings,
            self._total,
            self._generators,
            elapsed_s,
            self._stopped_because,
        )

    def _report_to_locust(self, record: StreamRecord, error: VitaError | None) -> None:
        """One request of locust's tables: its time is the TTFA, or where nothing is spoken the first text."""
        known = (record.ttfa_ms, record.first_text_ms, record.total_ms)
        self._environment.events.request.fire(
            request_type="stream",
            name=record.scenario,
            response_time=next(ms for ms in known if ms is not None),
            response_length=round(record.audio_s * 44_100),  # bytes of 16-bit samples at 22 050 Hz
            exception=error,
            context={"record": record},
            start_time=self._start_s + record.start_s,
        )

    def _give_up_without_server(self, start_s: float) -> None:
        runner = self._environment.runner
        while runner is not None and self._start_s == start_s and not self._stopped_because:
            gevent.sleep(1.0)
            second = int(now_s() - self._start_s)
            last = self._total.last_windows(second, _GONE_S)
            over, unreachable = sum(w.over for w in last), sum(w.unreachable for w in last)
            if second >= _GONE_S and over == unreachable >= _GONE_STREAMS:
                self._stopped_because = f"no server at {self.settings.url} for {_GONE_S} s: {unreachable} streams lost"
                logger.error(self._stopped_because)
                runner.quit() if self._environment.web_ui is None else runner.stop()

    def _describe(self) -> dict[str, Any]:
        return {**manifest(self.settings, self._command()), "started_s": self._start_s}

    def _live_page(self) -> str:
        if not self._start_s:
            return "no run yet"
        # Drawing takes a second: in a thread of its own, so that no stream waits for it.
        made: str = gevent.get_hub().threadpool.apply(page, ([summary(self._run())],))
        return made

    def _read_settings(self) -> Settings:
        """Checked options. Raises VitaError."""
        options = self._environment.parsed_options
        if self._reports and options is not None:
            options.plan_seconds = float(options.run_time or options.plan_seconds)
        return settings_from(options, self._environment.host, getattr(options, "num_users", None))

    def _settings_or_exit(self) -> Settings:
        """The same where the options come from the command line: one line and the end, before anything is sent."""
        try:
            settings = self._read_settings()
            if self._makes_streams:
                load_voices(settings.speech)
            return settings
        except VitaError as error:
            logger.error(str(error))
            sys.exit(2)

    def _command(self) -> str:
        return shlex.join(["locust", *sys.argv[1:]]) + f"  # {time.strftime('%Y-%m-%d %H:%M:%S')}"


def listen() -> None:
    """Register with locust's events; called once by the locustfile."""
    events.init_command_line_parser.add_listener(lambda parser, **_: add_arguments(parser))

    @events.init.add_listener
    def _init(environment: Environment, **_: Any) -> None:
        session = Session(environment)
        LoadUser.session = session
        environment.events.test_start.add_listener(lambda **_: session.test_start())
        environment.events.test_stopping.add_listener(lambda **_: session.test_stopping())
        environment.events.test_stop.add_listener(lambda **_: session.test_stop())
        environment.events.report_to_master.add_listener(lambda data, **_: session.report_to_master(data))
        environment.events.worker_report.add_listener(
            lambda client_id, data, **_: session.worker_report(client_id, data)
        )
        session.init()
