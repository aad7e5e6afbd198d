"""The items of a session's conversation, in order, as its client sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway.realtime.events import Content, EventError, Message, new_id

#: Older ones are no longer known; the model's memory has its own bound.
MAX_ITEMS = 1000
Item = dict[str, Any]


class Items:
    """Items by id, oldest first."""

    def __init__(self) -> None:
        self._items: dict[str, Item] = {}

    @property
    def last_id(self) -> str | None:
        return next(reversed(self._items), None)

    def add(self, item: Item, previous_id: str | None = None) -> str | None:
        """Put an item after another one (`root`: first; None: last). The id of the one it is after.

        Raises:
            EventError: there is one of this id, or none to put it after.
        """
        if item["id"] in self._items:
            message = f"item.id: there is an item {item['id']} already; use another id"
            raise EventError(message, "item_create_duplicate_item_id", "item.id")
        if previous_id in (None, self.last_id):
            previous_id = self.last_id
            self._items[item["id"]] = item
        else:
            ids = list(self._items)
            place = 0 if previous_id == "root" else ids.index(self.get(previous_id, "previous_item_id")["id"]) + 1
            entries = list(self._items.items())
            self._items = dict([*entries[:place], (item["id"], item), *entries[place:]])
            previous_id = ids[place - 1] if place else None
        if len(self._items) > MAX_ITEMS:
            del self._items[next(iter(self._items))]
        return previous_id

    def __contains__(self, item_id: str) -> bool:
        return item_id in self._items

    def get(self, item_id: str | None, param: str = "item_id") -> Item:
        """Raises EventError: there is none of this id."""
        if item_id is None or item_id not in self._items:
            raise EventError(f"{param}: there is no item {item_id}", "item_not_found", param)
        return self._items[item_id]

    def set_transcript(self, item_id: str, index: int, words: str) -> None:
        """What was said in a part of an item, if it is still there."""
        if item_id in self._items:
            self._items[item_id]["content"][index]["transcript"] = words

    def remove(self, item_id: str) -> None:
        """Raises EventError: there is none of this id."""
        self.get(item_id)
        del self._items[item_id]


def message_item(role: str, content: Sequence[dict[str, Any]], status: str, item_id: str | None = None) -> Item:
    """An item that is a message."""
    return {
        "id": item_id or new_id("item"),
        "object": "realtime.item",
        "type": "message",
        "status": status,
        "role": role,
        "content": list(content),
    }


def speech_item(item_id: str) -> Item:
    """Speech of the user; its sound is not sent back."""
    return message_item("user", [{"type": "input_audio", "transcript": None}], "completed", item_id)


def created_item(message: Message) -> Item:
    """The item that a client's message becomes.

    Raises:
        EventError: a part of it is missing, or of a kind that its role cannot have.
    """
    content = [_checked(message.role, index, part) for index, part in enumerate(message.content)]
    return message_item(message.role, content, "completed", message.id)


_KINDS = {
    "user": ("input_text", "input_audio"),
    "system": ("input_text",),
    "assistant": ("output_text", "output_audio"),
}
#: Names from before the interface was final.
_OLD_NAMES = {("assistant", "text"): "output_text", ("assistant", "audio"): "output_audio"}


def _checked(role: str, index: int, part: Content) -> dict[str, Any]:
    kind, place = _OLD_NAMES.get((role, part.type), part.type), f"item.content.{index}"
    if kind not in _KINDS[role]:
        message = f"{place}.type: {kind} is not for {role}; it takes {' or '.join(_KINDS[role])}"
        raise EventError(message, "invalid_value", f"{place}.type")
    if kind.endswith("text"):
        if part.text is None:
            raise EventError(f"{place}.text: field required", "missing_required_parameter", f"{place}.text")
        return {"type": kind, "text": part.text}
    if kind == "input_audio" and not part.audio:
        raise EventError(f"{place}.audio: field required", "missing_required_parameter", f"{place}.audio")
    return {"type": kind, "transcript": part.transcript}
