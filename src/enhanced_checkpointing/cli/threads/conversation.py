"""The messages of a conversation: LangChain's classes as they are stored, or plain dicts. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from enhanced_checkpointing.cli.plain_values import Described, as_json
from enhanced_checkpointing.cli.safe_text import clean
from enhanced_checkpointing.cli.value_texts import shown

__all__ = ["Call", "Message", "conversation_of", "joined", "message_of"]

ROLES = {
    "human": "human",
    "user": "human",
    "HumanMessageChunk": "human",
    "ai": "ai",
    "assistant": "ai",
    "AIMessageChunk": "ai",
    "tool": "tool",
    "function": "tool",
    "ToolMessageChunk": "tool",
    "system": "system",
    "developer": "system",
    "SystemMessageChunk": "system",
    "remove": "remove",
}
"""What LangChain and the makers of models call those who speak, and what they are called here."""

REMOVE_ALL = "__remove_all__"
"""The id with which LangGraph removes every message before it."""

TOLD_ELSEWHERE = ("tool_use", "tool_call", "function_call")
"""Parts of a message's content that its tool calls say again."""


@dataclass(frozen=True, slots=True)
class Call:
    """A tool that a message wants to be called."""

    name: str
    arguments: Any
    call_id: str | None = None

    @property
    def text(self) -> str:
        """As it would be written in Python."""
        if isinstance(self.arguments, dict):
            written = (f"{key}={shown([part])[1:-1]}" for key, part in self.arguments.items())
            return f"{self.name}({', '.join(written)})"
        return f"{self.name}({shown(self.arguments)})"


@dataclass(frozen=True, slots=True)
class Message:
    """One message; `text` may have several lines. `role` is human, ai, tool, system, or whatever it is stored as."""

    role: str
    text: str
    name: str | None = None
    message_id: str | None = None
    calls: tuple[Call, ...] = ()
    failed: bool = False
    """Whether it is the answer of a tool that says that it failed."""

    def as_json(self) -> dict[str, Any]:
        """The message in plain JSON types, without what it does not have."""
        found: dict[str, Any] = {"role": self.role, "text": self.text, "name": self.name, "id": self.message_id}
        if self.calls:
            found["tool_calls"] = [
                {"name": call.name, "arguments": as_json(call.arguments), "id": call.call_id} for call in self.calls
            ]
        if self.failed:
            found["failed"] = True
        return {key: part for key, part in found.items() if part is not None}


def message_of(value: Any) -> Message | None:
    """The message that a value is; None if it is none."""
    if isinstance(value, Described):
        content = value.content
        of_langchain = value.module.startswith("langchain_core.messages") or value.name.endswith("Message")
        return _message(content, content.get("type")) if of_langchain and _has_content(content) else None
    if _has_content(value) and isinstance(value.get("role", value.get("type")), str):
        role = value.get("role", value.get("type"))
        return _message(value, role) if role in ROLES else None
    return None


def conversation_of(value: Any) -> list[Message] | None:
    """The messages of a list that consists of nothing else; None for everything else, an empty list too."""
    if not isinstance(value, (list, tuple)) or not value:
        return None
    messages = [message for message in map(message_of, value) if message is not None]
    return messages if len(messages) == len(value) else None


def joined(before: Sequence[Any], more: Iterable[Any]) -> list[Any]:
    """Stored messages and what was written upon them, as LangGraph's `add_messages` joins them: by their ids."""
    found = list(before)
    for value in more:
        message = message_of(value)
        if message is None or message.message_id is None:
            found.append(value)
        elif message.role == "remove":
            every = message.message_id == REMOVE_ALL
            found = [] if every else [one for one in found if _id_of(one) != message.message_id]
        else:
            places = [place for place, one in enumerate(found) if _id_of(one) == message.message_id]
            if places:
                found[places[0]] = value
            else:
                found.append(value)
    return found


def _id_of(value: Any) -> str | None:
    message = message_of(value)
    return message.message_id if message is not None else None


def _has_content(content: Any) -> bool:
    return isinstance(content, dict) and "content" in content


def _message(content: dict[str, Any], kind: Any) -> Message:
    role = str(content.get("role") or kind) if kind == "chat" else str(kind)
    return Message(
        role=ROLES.get(role, role),
        text=clean(_text(content["content"])),
        name=_text_or_none(content.get("name")),
        message_id=_text_or_none(content.get("id")),
        calls=tuple(_calls(content)),
        failed=content.get("status") == "error",
    )


def _text_or_none(value: Any) -> str | None:
    return clean(value) if isinstance(value, str) and value else None


def _text(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        return shown(content)
    return "\n".join(text for text in map(_part, content) if text)


def _part(part: Any) -> str:
    """One part of what is said: text, or the name of what it is."""
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        return shown(part)
    kind = str(part.get("type", "part"))
    if kind in TOLD_ELSEWHERE:
        return ""
    if isinstance(part.get("text"), str):
        return str(part["text"])
    for name in ("thinking", "reasoning"):
        if isinstance(part.get(name), str):
            return f"({name}) {part[name]}"
    return f"[{kind.removesuffix('_url')}]"


def _calls(content: dict[str, Any]) -> Iterable[Call]:
    for key in ("tool_calls", "invalid_tool_calls"):
        listed = content.get(key)
        for call in listed if isinstance(listed, (list, tuple)) else ():
            if isinstance(call, dict):
                yield _call(call)


def _call(call: dict[str, Any]) -> Call:
    """LangChain says name and args; those who make models put them into `function`, the arguments as JSON."""
    function = call.get("function")
    said = function if isinstance(function, dict) else call
    arguments = said.get("args", said.get("arguments", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:  # a model wrote it: shown as it is
            arguments = clean(arguments)
    return Call(clean(str(said.get("name"))), arguments, _text_or_none(call.get("id")))
