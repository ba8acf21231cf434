from __future__ import annotations

from collections.abc import Iterator

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fixbn_flwr.flower_compat import set_task_identity
from fixbn_flwr.server.outgoing_messages import add_config, contents_of, copies_of


def message(content: RecordDict) -> Message:
    set_task_identity(1)
    return Message(content, dst_node_id=1, message_type="train")


def test_copies_share_contents_like_the_originals_and_do_not_change_them() -> None:
    shared = RecordDict({"arrays": ArrayRecord(), "config": ConfigRecord({"lr": 0.1})})
    originals = [message(shared), message(shared), message(RecordDict({"config": ConfigRecord()}))]
    copies = copies_of(originals)
    assert [len(contents_of(messages)) for messages in (originals, copies)] == [2, 2]
    assert [c.metadata for c in copies] == [o.metadata for o in originals]
    add_config(contents_of(copies), {"phase": "x"}, "config")
    assert copies[0].content["config"] == ConfigRecord({"lr": 0.1, "phase": "x"})
    assert originals[0].content["config"] == ConfigRecord({"lr": 0.1})
    assert copies[0].content["arrays"] is shared["arrays"]


def test_each_client_gets_the_message_that_a_generator_made_for_it() -> None:
    def messages() -> Iterator[Message]:
        for client in range(100):
            content = RecordDict()
            content["config"] = ConfigRecord({"for": client})
            yield message(content)

    copies = copies_of(messages())
    assert [copy.content["config"]["for"] for copy in copies] == list(range(100))


def test_the_config_is_the_named_record_or_the_first_or_a_new_one() -> None:
    both = RecordDict({"a": ConfigRecord(), "config": ConfigRecord()})
    other = RecordDict({"settings": ConfigRecord({"lr": 0.1})})
    none = RecordDict()
    add_config([both, other, none], {"phase": "x"}, "config")
    assert both == RecordDict({"a": ConfigRecord(), "config": ConfigRecord({"phase": "x"})})
    assert other == RecordDict({"settings": ConfigRecord({"lr": 0.1, "phase": "x"})})
    assert none == RecordDict({"config": ConfigRecord({"phase": "x"})})
