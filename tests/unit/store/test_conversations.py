"""What the store tells of a conversation: its beginning, and its newest answer, of one user."""

from __future__ import annotations

from kto_ray.records.completions import ExternalRef
from kto_ray.records.conversations import Conversation
from kto_ray.store import Store, completions
from tests.support.rows import completion

CHAT = ExternalRef("webui", "chat", "m")


def test_a_conversation_is_of_a_user_its_first_time_and_its_newest_answer(store: Store) -> None:
    with store.write() as tx:
        completions.insert(tx, completion("c1", created_at=7.0, external=CHAT, rollout="r1", holdback="h1"))
        completions.insert(tx, completion("c2", created_at=5.0, external=CHAT, adapter="policy@v1", rollout="r2"))
        completions.insert(tx, completion("c3", created_at=1.0, external=CHAT, user="bob"))
        completions.insert(tx, completion("c4", created_at=2.0, external=ExternalRef("webui", "other")))
        completions.insert(tx, completion("c5", created_at=3.0, external=ExternalRef("langfuse", "chat")))
        completions.insert(tx, completion("c6", created_at=4.0))
    with store.read() as tx:
        found = completions.conversation_of(tx, "ann", ExternalRef("webui", "chat"))
        assert found == Conversation(5.0, "policy@v1", "r2", None), "what the spool kept may come late, with its time"
        assert completions.conversation_of(tx, "bob", CHAT) == Conversation(1.0, "policy@base")
        assert completions.conversation_of(tx, "cy", CHAT) is None
