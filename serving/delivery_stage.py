"""The stage `delivery`, behind `speech`: hands its answers to the client, and has it end streams whose client is gone.

Triton shows that a client has gone only in a request that it schedules afterwards (docs/triton.md, "Cancelling"): each
answer of `speech` is one here, and so is each Probe that it sends while it has none.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable

from serving.heartbeat import Heartbeats
from serving.metrics.recorder import Recorder
from serving.metrics.refusals import Refusals
from vita_audio.contract.errors import BadMessage, VitaError
from vita_audio.contract.messages import Cancel, Message, Probe, Released, Status
from vita_audio.decoding.cancel_notifier import CancelNotifier
from vita_audio.decoding.served_stream import DecodedChunk, Ending

log = logging.getLogger(__name__)

#: Streams that `speech` was asked to end, and is not asked again.
_REMEMBERED_STREAMS = 1024


class DeliveryStage:
    """Answers the requests that `delivery` gets.

    Args:
        notify: sends a message to `speech`.
        heartbeats: of this process.
    """

    def __init__(self, notify: Callable[[Cancel | Released], None], heartbeats: Heartbeats) -> None:
        self.recorder = Recorder()
        self._refusals = Refusals(self.recorder, "delivery")
        self._notifier = CancelNotifier(notify, heartbeats.pulse("notifier"))
        self._cancelled: OrderedDict[str, None] = OrderedDict()

    def accept(
        self,
        read: Callable[[], Message],
        deliver: Callable[[], None],
        refuse: Callable[[DecodedChunk | None], None],
        cancelled: Callable[[], bool],
    ) -> None:
        """Take in a request of the stream that `read` names.

        Args:
            deliver: hands what the request holds to the client.
            refuse: hands that to the client instead; None is nothing.
        """
        try:
            message = read()
            if not isinstance(message, Probe):
                raise BadMessage(f"kind: delivery takes no {type(message).__name__}", field="kind")
        except Exception as error:
            log.warning("refused a message: %s", error, exc_info=not isinstance(error, VitaError))
            self._refusals.count(error)
            refuse(DecodedChunk.empty(Status("", 0, **Ending.of(error)._asdict())))
            return
        if not cancelled():
            deliver()
            return
        if message.stream not in self._cancelled:
            self._cancelled[message.stream] = None
            if len(self._cancelled) > _REMEMBERED_STREAMS:
                self._cancelled.popitem(last=False)
            self._notifier.cancel(message.stream)
        refuse(None)

    def close(self) -> None:
        """Send what is due and end the thread."""
        self._notifier.close(2.0)
