"""A person, and one answer, erased over HTTP; and an old text read back from its archive."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from kto_ray.config import Config
from kto_ray.provenance.retention import DAY_S, keep
from kto_ray.records.requests import Act
from kto_ray.records.rounds import Training
from kto_ray.store import adapters, archives, requests, rounds, snapshots
from kto_ray.store.custody import Work, custody
from tests.api.conftest import HI, Api
from tests.support.provenance import adapter, seal


def test_a_user_is_erased_and_told_what_that_took(api: Api) -> None:
    mine, other = api.chat(user="ann").json()["id"], api.chat(user="bob").json()["id"]
    api.say(mine, user="ann", comment="all mine")
    api.say(other, user="bob")
    done = api.client.delete("/v1/users/ann")
    assert done.status_code == 200, done.text
    told = done.json()
    assert (told["kind"], told["id"], told["remains"], told["adapters"]) == ("user", "ann", [], [])
    assert told["rows"] == {"completions": 1, "feedback": 1, "feedback_of_others": 0}
    assert api.client.get(f"/v1/completions/{mine}").status_code == 404
    assert len(api.client.get(f"/v1/completions/{other}").json()["feedback"]) == 1
    again = api.client.delete("/v1/users/ann")
    assert (
        again.status_code == 404 and "'ann' is in neither the store nor a snapshot" in again.json()["error"]["message"]
    )


def test_a_user_of_an_application_is_named_with_its_principal(api: Api) -> None:
    mine = api.chat(user="shop/ann").json()["id"]
    assert api.client.delete("/v1/users/ann").status_code == 404
    assert api.client.delete("/v1/users/shop/ann").json()["rows"]["completions"] == 1
    assert api.client.get(f"/v1/completions/{mine}").status_code == 404


def test_one_anonymous_answer_is_erased_by_its_id(api: Api) -> None:
    name, other = api.chat().json()["id"], api.chat().json()["id"]
    api.say(name)
    done = api.client.delete(f"/v1/completions/{name}").json()
    assert (done["kind"], done["rows"]) == (
        "completion",
        {"completions": 1, "feedback": 0, "feedback_of_others": 1},
    )
    assert api.client.get(f"/v1/completions/{name}").status_code == 404
    assert api.client.get(f"/v1/completions/{other}").status_code == 200
    gone = api.client.delete(f"/v1/completions/{name}")
    assert gone.status_code == 404 and gone.json()["error"]["param"] == "completion"


def test_the_turns_that_quote_an_answer_go_with_it_and_are_listed(api: Api) -> None:
    first = api.chat(user="ann").json()
    said = {"role": "assistant", "content": first["choices"][0]["message"]["content"]}
    more = {"role": "user", "content": "And at night?"}
    second, other = (api.chat(user=user, messages=[*HI, said, more]).json()["id"] for user in ("ann", "bob"))
    told = api.client.delete(f"/v1/completions/{first['id']}").json()
    assert told["later"] == [second] and told["rows"]["completions"] == 2
    assert api.client.get(f"/v1/completions/{second}").status_code == 404
    assert api.client.get(f"/v1/completions/{other}").status_code == 200


def test_affected_adapters_and_rounds_are_named(api: Api, tmp_path: Path) -> None:
    name = api.chat(user="ann").json()["id"]
    manifest, uri = seal(tmp_path, {"train": [(name, "ann")]}, 1)
    with api.store.write() as tx:
        snapshots.insert(tx, manifest, uri)
        adapters.insert(tx, adapter(1, manifest.id, None))
        adapters.set_alias(tx, "champion", "policy@v1-aaaaaa", 4.0)
        rounds.update(tx, rounds.insert(tx, 5.0).to(Training(manifest.id), 6.0))
    told = api.client.delete("/v1/users/ann").json()
    assert told["snapshots"] == [{"snapshot": manifest.id, "rows": {"train": 1}, "purged_at": None}]
    assert told["adapters"] == [{"adapter": "policy@v1-aaaaaa", "aliases": ["champion"]}]
    assert told["rounds"] == [{"round": 1, "stage": "train"}]
    assert told["asked"] == ["to end round 1", "to begin a round on what is left"]
    with api.store.read() as tx:
        assert [request.act for request in requests.asked(tx)] == [Act.FORGET, Act.RUN]
    again = api.client.delete("/v1/users/ann")
    assert again.status_code == 200 and again.json()["rows"]["completions"] == 0, "the tombstone knows them"


def test_another_erasure_that_goes_on_is_told(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kto_ray.provenance.erasure.PATIENCE_S", 0.0)
    name = api.chat(user="ann").json()["id"]
    with custody(api.store, Work.ERASING):
        busy = api.client.delete("/v1/users/ann")
    assert busy.status_code == 409 and "erasing goes on" in busy.json()["error"]["message"]
    assert api.client.get(f"/v1/completions/{name}").status_code == 200


def test_no_operator_asks_to_forget(api: Api) -> None:
    assert api.client.post("/v1/rollout/forget").status_code == 404


def test_an_old_answer_is_read_from_its_archive(api: Api) -> None:
    name = api.chat(user="ann").json()["id"]
    before = api.client.get(f"/v1/completions/{name}").json()
    settings = Config.model_validate({**api.config.model_dump(), "retention": {"completions_days": 1}})
    assert keep(api.store, settings, time.time() + 2 * DAY_S).completions == 1
    after = api.client.get(f"/v1/completions/{name}").json()
    assert after["archive"] is not None and {**after, "archive": None} == before
    assert api.say(name).status_code == 201
    assert api.client.get(f"/v1/completions/{name}").json()["labels"] == []
    with api.store.read() as tx:
        [made] = archives.every(tx)
    assert api.client.delete(f"/v1/completions/{name}").json()["archived"] == 1
    assert not Path(made.uri).exists()
