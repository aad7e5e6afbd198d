"""The locust user: a Poisson source of requests (open loop), or one that waits for each answer (closed loop)."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, ClassVar

from locust import User, task
from locust.exception import StopUser

from loadtest.arrivals import PoissonSource
from loadtest.clock import now_s
from loadtest.workload import Workload

if TYPE_CHECKING:
    from loadtest.session import Session


class LoadUser(User):
    """Locust waits between tasks, so the open loop's gaps are waits: stopping a user never waits for its next call."""

    session: ClassVar[Session]

    def on_start(self) -> None:
        if not self.session.running:
            return  # the run was refused; the first call ends this user
        session, settings = self.session, self.session.settings
        random_ = random.Random(session.next_user_seed())
        self._settings, self._random = settings, random_
        self._workload = Workload(settings.profile, session.voices, random_)
        self._arrivals = PoissonSource(settings.source_rate_hz, now_s(), random_)

    @task
    def send(self) -> None:
        if not self.session.running:
            raise StopUser
        if self._settings.loop == "open":
            for intended_s in self._arrivals.due(now_s()):
                self.session.launch(self._workload.draw(), intended_s)
            return
        stream = self.session.launch(self._workload.draw(), now_s())
        if stream is None:
            raise StopUser
        stream.join()

    def wait_time(self) -> float:
        """Seconds until the next call."""
        if self._settings.loop == "open":
            return max(0.0, self._arrivals.next_s - now_s())
        return self._settings.profile.think_s.draw(self._random)
