"""Swaps under fire, of candidates, slots and keys: callers stream all the time, and get whole answers whatever is
loaded, refused or signed anew."""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kto_ray.adapters.publish import sign
from kto_ray.adapters.signature import signed
from kto_ray.config import load_config
from kto_ray.paths import ADAPTER_CONFIG, ADAPTER_MANIFEST, ADAPTER_WEIGHTS
from kto_ray.records.adapters import CHALLENGER, CHAMPION, PREVIOUS, AdapterVersion
from tests.support.adapters import known_anew
from tests.support.callers import call, callers
from tests.support.fired import (
    NEW,
    OLD,
    answers_come,
    ended,
    held,
    of_alias,
    past_load,
    settled,
)
from tests.support.steered import Steered
from tests.support.swaps import (
    aliases,
    known,
    loading,
    newest,
    on_trial,
    point,
    promote,
    published,
)
from tests.support.watch import watched

pytestmark = [pytest.mark.fault, pytest.mark.timeout(1200)]


def damaged(version: AdapterVersion, other: AdapterVersion, how: str) -> AdapterVersion:
    """The version as the store is to know it, once its files are not what they were."""
    folder = Path(version.uri)
    if how == "deleted":
        shutil.rmtree(folder)
    elif how == "corrupted":
        weights = bytearray((folder / ADAPTER_WEIGHTS).read_bytes())
        weights[-1] ^= 1
        (folder / ADAPTER_WEIGHTS).write_bytes(weights)
    elif how == "swapped":
        shutil.rmtree(folder)
        shutil.copytree(other.uri, folder)
    else:
        (folder / ADAPTER_CONFIG).write_text("{}")
        version = known_anew(version)
        (folder / ADAPTER_MANIFEST).write_text(json.dumps(signed(version.manifest, (OLD,))))
    return version


REFUSED = {
    "deleted": "does not exist",
    "corrupted": "the file was changed after it was published",
    "swapped": "a name never points at other weights",
    "without keys": "adapter_config.json is damaged: peft_type: Field required",
}


def test_a_candidate_that_is_not_what_was_published_is_refused_in_words(run: Steered) -> None:
    before = aliases(run)
    with callers(run), watched(run):
        for how, words in REFUSED.items():
            candidate = known(run, damaged(published(run), of_alias(run, CHAMPION), how))
            told = ended(run, loading(run, candidate).id)
            assert told["outcome"] == "failed" and words in told["reason"], (how, told)
            assert aliases(run) == before
    settled(run)


def test_a_load_waits_for_a_slot_and_no_stream_is_cut(run: Steered) -> None:
    """Four slots: champion, previous champion, and two former challengers whose streams last."""
    former = [known(run, published(run)) for _ in range(2)]
    with callers(run, lanes=2), ThreadPoolExecutor(8) as pool:
        streams = []
        for version in former:
            point(run, CHALLENGER, version)
            run.wait(f"{version.name} held", lambda name=version.name: held(run, name), 60)  # type: ignore[misc]
            time.sleep(1)  # the gateways' view
            streams += [pool.submit(call, run, version.name, 600, True) for _ in range(4)]
        time.sleep(2)
        candidate = known(run, published(run))
        number = loading(run, candidate).id
        run.wait("a load that waits for a slot", lambda: True if "slots" in (newest(run)["reason"] or "") else None, 60)
        going_on = sum(not stream.done() for stream in streams)
        assert going_on and newest(run)["stage"] == "load", going_on
        past_load(run, number)
        assert [one.result().fault for one in streams] == [None] * len(streams)
        assert [one.result().versions for one in streams[:4]] == [{former[0].name}] * 4
    settled(run)


def test_the_signing_key_is_rotated_while_it_serves(run: Steered) -> None:
    """The new key comes in front of the old one, what serves is signed anew, and the old one is taken out."""
    run.scale(2)
    settled(run)
    both, new = f"adapters.signing_keys={NEW},{OLD}", f"adapters.signing_keys={NEW}"
    with callers(run) as asking:
        late = published(run)  # by the old key
        run.deploy(both)
        settled(run)
        for version in (of_alias(run, CHAMPION), of_alias(run, PREVIOUS)):
            sign(load_config(None, (*run.settings, both)), version)
        run.deploy(new)
        settled(run)
        told = ended(run, loading(run, known(run, late)).id)
        assert told["outcome"] == "failed" and "was signed by another key" in told["reason"], told
        fresh = known(run, published(run, load_config(None, (*run.settings, new))))
        on_trial(run, fresh)
        promote(run, fresh)
        answers_come(run, asking, fresh)
    settled(run)
