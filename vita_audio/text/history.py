"""A conversation so far, as the ids that a server wrote and generated: read into turns, cut to what was heard, and
shortened to fit.

A client only joins what it received (PROMPT and TOKENS of the last answer), so the last answer may be whole, end with
its end token, or be cut anywhere; it is closed here. Nothing is kept between requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from vita_audio.contract.errors import InvalidRequest
from vita_audio.text.chat_template import ROLES, ChatTemplate
from vita_audio.text.vocabulary import Vocabulary

#: Where turns are dropped, as many go as leave this share of the room: the next turns then find their beginning cached.
KEPT_SHARE = 0.75

_REMEDY = "send PROMPT and TOKENS of the last answer, joined"


@dataclass(frozen=True, slots=True)
class PastTurn:
    """One turn: `ids` with its opening, and its end unless it is the last one and was cut; `content` apart.

    `clip_rows`: places of embeddings in it (Plus checkpoints); 0 of a turn without such speech.
    """

    role: str
    ids: tuple[int, ...]
    content: tuple[int, ...]
    clip_rows: int = 0


class HistoryReader:
    """Reads the histories of one checkpoint.

    Args:
        template: writes its turns.
        vocabulary: of its ids.
    """

    def __init__(self, template: ChatTemplate, vocabulary: Vocabulary) -> None:
        self._openings = {role: tuple(template.opening(role)) for role in ROLES}
        self._closing, self._vocabulary = tuple(template.closing), vocabulary

    def read(self, ids: Sequence[int], heard: int | None = None) -> list[PastTurn]:
        """All turns of a history, complete; the last one is an answer.

        Args:
            ids: of the conversation; the last answer may lack its end.
            heard: audio tokens of the last answer that were heard: what follows them is cut off; None keeps it all.

        Raises:
            InvalidRequest: field HISTORY; these are not the turns of a conversation with this checkpoint.
        """
        if len(ids) and ids[-1] == self._vocabulary.end_of_text:  # ends an answer too, and no turn holds it
            ids = ids[:-1]
        turns, place = list[PastTurn](), 0
        while place < len(ids):
            turn, place = self._turn(ids, place, first=not turns)
            turns.append(turn)
        if not turns or turns[-1].role != "assistant":
            role = f"of {turns[-1].role}" if turns else "with nothing"
            raise InvalidRequest(
                "HISTORY", f"{len(ids)} ids", f"it ends with a turn {role}, not with an answer", _REMEDY
            )
        content = turns[-1].content
        content = self._with_run_closed(content if heard is None else self._cut(content, heard))
        turns[-1] = self._complete("assistant", content)
        return turns

    def shorten(self, turns: Sequence[PastTurn], room: int) -> list[PastTurn]:
        """All turns, where they fit `room` ids. Else the oldest exchanges (a user's turn and what follows it up to the
        next) are dropped until `KEPT_SHARE` of the room holds the rest; the system turn stays."""
        if sum(len(turn.ids) for turn in turns) <= room:
            return list(turns)
        system = [turn for turn in turns[:1] if turn.role == "system"]
        rest, kept = list(turns[len(system) :]), int(room * KEPT_SHARE)
        while rest and sum(len(turn.ids) for turn in [*system, *rest]) > kept:
            after = [place for place, turn in enumerate(rest) if place and turn.role == "user"]
            del rest[: after[0] if after else len(rest)]
        return [*system, *rest]

    def _turn(self, ids: Sequence[int], place: int, first: bool) -> tuple[PastTurn, int]:
        """The turn that begins at `place`, and where the next one does."""
        end_of_turn = self._vocabulary.im_end
        role = next((r for r, o in self._openings.items() if tuple(ids[place : place + len(o)]) == o), None)
        if role is None:
            limit = f"no turn begins at id {place} ({self._shown(ids, place)})"
            raise InvalidRequest("HISTORY", f"{len(ids)} ids", f"{limit}: is it another checkpoint's?", _REMEDY)
        if role == "system" and not first:
            raise InvalidRequest("HISTORY", f"{len(ids)} ids", f"a second system turn begins at id {place}", _REMEDY)
        begin = stop = place + len(self._openings[role])
        while stop < len(ids) and ids[stop] != end_of_turn:
            if not self._may_stand_in_a_turn(ids[stop], role):
                limit = f"id {stop} ({self._shown(ids, stop)}) stands in no turn of this checkpoint"
                raise InvalidRequest("HISTORY", f"{len(ids)} ids", limit, _REMEDY)
            stop += 1
        content, written = tuple(ids[begin:stop]), tuple(ids[stop : stop + len(self._closing)])
        # The last turn may have been cut anywhere, its end too.
        if written != self._closing[: len(ids) - stop]:
            raise InvalidRequest("HISTORY", f"{len(ids)} ids", f"the turn before id {stop} does not end", _REMEDY)
        if written == self._closing:
            rows = self._clip_rows(content, begin, len(ids))
            return PastTurn(role, tuple(ids[place : stop + len(written)]), content, rows), stop + len(written)
        if role != "assistant":
            raise InvalidRequest("HISTORY", f"{len(ids)} ids", f"it ends within a turn of {role}", _REMEDY)
        return self._complete(role, content), len(ids)

    def _complete(self, role: str, content: tuple[int, ...]) -> PastTurn:
        return PastTurn(role, (*self._openings[role], *content, *self._closing), content)

    def _cut(self, content: tuple[int, ...], heard: int) -> tuple[int, ...]:
        """An answer up to its audio token number `heard`; whole if it has no more."""
        vocabulary, left, kept = self._vocabulary, heard, list[int]()
        if sum(vocabulary.audio_code(token) is not None for token in content) <= heard:
            return content
        for token in content:
            if vocabulary.audio_code(token) is not None:
                if left == 0:
                    break
                left -= 1
            kept.append(token)
        while kept and vocabulary.audio_code(kept[-1]) is None:  # text that was to come with the sound after the cut
            kept.pop()
        return tuple(kept)

    def _with_run_closed(self, content: tuple[int, ...]) -> tuple[int, ...]:
        """An answer that was cut within a run of audio, with the tag that ends it."""
        begin, end = self._vocabulary.begin_of_audio, self._vocabulary.end_of_audio
        tags = [token for token in content if token in (begin, end)]
        if not tags or tags[-1] == end:
            return content
        return content[:-1] if content[-1] == begin else (*content, end)

    def _clip_rows(self, content: tuple[int, ...], begin: int, ids: int) -> int:
        """Places of embeddings in the content of a turn, which begins at id `begin` of `ids`."""
        v, place, found = self._vocabulary, 0, list[int]()
        for token, run in groupby(content):
            stop = place + len(list(run))
            if token == v.context_of_audio:
                if content[place - 1 : place] != (v.begin_of_audio,) or content[stop : stop + 1] != (v.end_of_audio,):
                    limit = f"the speech at id {begin + place} is not between its tags"
                    raise InvalidRequest("HISTORY", f"{ids} ids", limit, _REMEDY)
                found.append(stop - place)
            place = stop
        if len(found) > 1:
            limit = f"the turn at id {begin} has {len(found)} clips of speech, and a turn has at most one"
            raise InvalidRequest("HISTORY", f"{ids} ids", limit, _REMEDY)
        return sum(found)

    def _may_stand_in_a_turn(self, token: int, role: str) -> bool:
        v = self._vocabulary
        if token == v.context_of_audio:
            return role == "user"
        return v.is_text(token) or v.audio_code(token) is not None or token in (v.begin_of_audio, v.end_of_audio)

    def _shown(self, ids: Sequence[int], place: int) -> str:
        return ", ".join(map(str, ids[place : place + 3]))
