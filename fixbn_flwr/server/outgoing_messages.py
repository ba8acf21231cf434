"""Copies of a strategy's messages, so that what FixBN adds stays out of the user's records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from flwr.common import ConfigRecord, Message, RecordDict

from fixbn_flwr.flower_compat import make_message


def copies_of(messages: Iterable[Message]) -> list[Message]:
    """Return messages of their own contents, which share their records with the originals.

    Messages that share one content, as Flower's strategies make them, still share one.
    """
    messages = list(messages)  # a generator would free each content, and Python reuse its id
    copies: dict[int, RecordDict] = {}
    return [
        make_message(
            metadata=message.metadata,
            content=copies.setdefault(id(message.content), RecordDict({**message.content})),
        )
        for message in messages
    ]


def contents_of(messages: Iterable[Message]) -> list[RecordDict]:
    """Return the contents of messages, each once."""
    return list({id(message.content): message.content for message in messages}.values())


def add_config(contents: Iterable[RecordDict], entries: Mapping[str, Any], key: str) -> None:
    """Add entries to the config of each content.

    Args:
        contents: Changed in place. Their records are replaced, not changed.
        entries: The config's new entries.
        key: The key of the config record. Without a record of this key the first config record is
            used, and without any a new one is made.
    """
    for content in contents:
        configs = content.config_records
        found = key if key in configs else next(iter(configs), key)
        content[found] = ConfigRecord({**configs.get(found, ConfigRecord()), **entries})
