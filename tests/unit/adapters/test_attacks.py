"""What somebody may put where adapters lie, each refused in its own words by what a replica calls; nothing of it runs,
and no copy of it is left."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kto_ray.adapters.files import fetch
from kto_ray.adapters.signature import signed
from kto_ray.records.adapters import AdapterVersion
from tests.support.adapters import LAYER, known_anew, tensors, write
from tests.unit.adapters.conftest import Published

MAX_RANK = 16
KEY, OTHER = "k" * 32, "o" * 32
CONFIG, WEIGHTS, MANIFEST = "adapter_config.json", "adapter_model.safetensors", "manifest.json"

Attack = Callable[[Path], None]


class Runs:
    """A pickle that tells when it is loaded."""

    ran = Path("/tmp/kto-ray-a-pickle-ran")

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.ran}",)


def data(name: str, told: bytes) -> Attack:
    def attack(folder: Path) -> None:
        (folder / name).write_bytes(told)

    return attack


def cut(keep: int) -> Attack:
    def attack(folder: Path) -> None:
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:keep])

    return attack


def settings(**changes: Any) -> Attack:
    def attack(folder: Path) -> None:
        told = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**told, **changes}))

    return attack


def zipped(folder: Path) -> None:
    with zipfile.ZipFile(folder / WEIGHTS, "w") as archive:
        archive.writestr("data.pkl", pickle.dumps(Runs()))


def linked(name: str) -> Attack:
    def attack(folder: Path) -> None:
        elsewhere = folder.parent / f"elsewhere-{name}"
        (folder / name).rename(elsewhere)
        (folder / name).symlink_to(elsewhere)

    return attack


def piped(folder: Path) -> None:
    (folder / CONFIG).unlink()
    os.mkfifo(folder / CONFIG)


def named(**files: Any) -> Attack:
    """Files that the manifest names beside the two."""

    def attack(folder: Path) -> None:
        told = json.loads((folder / MANIFEST).read_text())
        told["files"] |= {name.replace("_", "/"): entry for name, entry in files.items()}
        (folder / MANIFEST).write_text(json.dumps(told))

    return attack


def whole_tensor(folder: Path) -> None:
    write(folder, tensors() | {f"{LAYER}.weight": torch.ones(2, 2)})


def shaped(a: tuple[int, ...] | None, b: tuple[int, ...] | None, **more: tuple[int, ...]) -> Attack:
    """Of one layer, the halves in these shapes, and further parts."""

    def attack(folder: Path) -> None:
        shapes = {"lora_A.weight": a, "lora_B.weight": b, **more}
        write(folder, {f"{LAYER}.{name}": torch.ones(shape) for name, shape in shapes.items() if shape is not None})

    return attack


def without_alpha(folder: Path) -> None:
    told = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({name: value for name, value in told.items() if name != "lora_alpha"}))


ENTRY = {"sha256": "0" * 64, "bytes": 1}
# What the store and the manifest say agrees with it: only looking at it helps.
CONTENTS: dict[str, tuple[Attack, str]] = {
    "pickle": (data(WEIGHTS, pickle.dumps(Runs())), "is a pickle, and no safetensors"),
    "zip": (zipped, "is a zip archive"),
    "giant header": (data(WEIGHTS, (2**40).to_bytes(8, "little") + b"{"), "tells a header of 1099511627776 bytes"),
    "header beyond the file": (data(WEIGHTS, (2**20).to_bytes(8, "little") + b"{}"), "truncated or damaged"),
    "nothing of it": (cut(0), "truncated or damaged"),
    "a part of its length": (cut(4), "truncated or damaged"),
    "a part of its header": (cut(100), "truncated or damaged"),
    "all but a byte": (cut(-1), "truncated or damaged"),
    "modules_to_save": (settings(modules_to_save=["score"]), "brings score whole"),
    "a whole tensor": (whole_tensor, f"brings {LAYER}.weight whole"),
    "config {}": (data(CONFIG, b"{}"), f"{CONFIG} is damaged: peft_type"),
    "config a list": (data(CONFIG, b"[]"), f"{CONFIG} is damaged: the file"),
    "config of brackets": (data(CONFIG, b"[" * 200_000), f"{CONFIG} is damaged: it is no JSON"),
    "text in rank_pattern": (settings(rank_pattern={"q_proj": "many"}), "rank_pattern.q_proj"),
    "alpha NaN": (settings(lora_alpha=float("nan")), f"{CONFIG} is damaged: lora_alpha"),
    "alpha beyond": (settings(lora_alpha=1e30), f"{CONFIG} is damaged: lora_alpha"),
    "alpha zero": (settings(lora_alpha=0), f"{CONFIG} is damaged: lora_alpha"),
    "alpha in words": (settings(lora_alpha="16"), f"{CONFIG} is damaged: lora_alpha"),
    "no alpha": (without_alpha, f"{CONFIG} is damaged: lora_alpha: Field required"),
    "alpha of a layer NaN": (settings(alpha_pattern={"q_proj": float("nan")}), "alpha_pattern.q_proj"),
    "rank of a layer zero": (settings(rank_pattern={"q_proj": 0}), "rank_pattern.q_proj"),
    "lora_A a number": (shaped((), (8, 4)), "lora_A.weight has shape ()"),
    "lora_A a vector": (shaped((4,), (8, 4)), "lora_A.weight has shape (4,)"),
    "halves of no rank": (shaped((0, 8), (8, 0)), "and lora_A is (rank, inputs), lora_B (outputs, rank)"),
    "lora_B of another rank": (shaped((4, 8), (8, 2)), "has rank 4 in lora_A and 2 in lora_B"),
    "halves of another rank": (shaped((2, 8), (8, 2)), "in lora_B, and its config tells 4"),
    "lora_B alone": (shaped(None, (8, 100)), "has only one of lora_A and lora_B"),
    "no part of LoRA": (shaped((4, 8), (8, 4), **{"lora_x.weight": (3,)}), "lora_x.weight is no part of a LoRA layer"),
    "DoRA without magnitudes": (settings(use_dora=True), "use_dora is true, and layer"),
    "magnitudes without DoRA": (shaped((4, 8), (8, 4), lora_magnitude_vector=(8,)), "use_dora is false, and layer"),
    "rank beyond": (settings(rank_pattern={"q_proj": 512}), "has rank 512"),
}
# Behind the back of the store.
SWAPS: dict[str, tuple[Attack, str]] = {
    "config changed": (settings(lora_alpha=9), "changed after it was published"),
    "config longer": (settings(more="x" * 5000), "are the most that it may have, so it was not read"),
    "manifest {}": (data(MANIFEST, b"{}"), f"{MANIFEST} is damaged: files"),
    "manifest a list": (data(MANIFEST, b"[]"), f"{MANIFEST} is damaged: files"),
    "manifest no JSON": (data(MANIFEST, b"\xff"), f"{MANIFEST} is damaged: it is no JSON"),
    "manifest of brackets": (data(MANIFEST, b"[" * 200_000), f"{MANIFEST} is damaged: it is no JSON"),
    "manifest without end": (data(MANIFEST, b" " * 2**21), "so it was not read"),
    "../": (named(**{".._.._evil": ENTRY}), "names ../../evil"),
    "absolute": (named(**{"_etc_passwd": ENTRY}), "names /etc/passwd"),
    "symlinked weights": (linked(WEIGHTS), f"{WEIGHTS} is a symbolic link"),
    "symlinked config": (linked(CONFIG), f"{CONFIG} is a symbolic link"),
    "symlinked manifest": (linked(MANIFEST), f"{MANIFEST} is a symbolic link"),
    "a pipe": (piped, f"{CONFIG} is no plain file"),
    "a pickle beside": (data("adapter_model.bin", pickle.dumps(Runs())), "a pickle runs code"),
    "weights gone": (lambda folder: (folder / WEIGHTS).unlink(), f"has no {WEIGHTS}"),
    "config gone": (lambda folder: (folder / CONFIG).unlink(), f"has no {CONFIG}"),
    "manifest gone": (lambda folder: (folder / MANIFEST).unlink(), "never fully published"),
}


def refused(version: AdapterVersion, words: str, cache: Path, keys: tuple[str, ...] = ()) -> None:
    with pytest.raises(ValueError) as told:
        fetch(version, MAX_RANK, keys)
    assert words in str(told.value)
    assert list(cache.iterdir()) == [], "a copy of it is left"
    assert not Runs.ran.exists()


@pytest.mark.parametrize(("attack", "words"), CONTENTS.values(), ids=CONTENTS.keys())
def test_contents_are_refused(published: Published, cache: Path, attack: Attack, words: str) -> None:
    version = published()
    attack(Path(version.uri))
    refused(known_anew(version), words, cache)


@pytest.mark.parametrize(("attack", "words"), SWAPS.values(), ids=SWAPS.keys())
def test_what_was_changed_behind_the_stores_back_is_refused(
    published: Published, cache: Path, attack: Attack, words: str
) -> None:
    version = published()
    attack(Path(version.uri))
    refused(version, words, cache)


def test_files_swapped_with_their_manifest_are_not_those_of_the_store(published: Published, cache: Path) -> None:
    version = published()
    write(Path(version.uri), {name: 2 * tensor for name, tensor in tensors().items()})
    known_anew(version)
    refused(version, "the store knows it by", cache)


def test_a_folder_that_is_a_link_or_leads_out_is_refused(published: Published, cache: Path, tmp_path: Path) -> None:
    version = published()
    (tmp_path / "link").symlink_to(version.uri)
    refused(replace(version, uri=str(tmp_path / "link")), "is a symbolic link", cache)
    refused(replace(version, uri=f"file://{version.uri}/../{Path(version.uri).name}"), "leads out of its folder", cache)
    refused(replace(version, uri=str(tmp_path / "nothing")), "does not exist", cache)


def test_a_row_of_the_store_that_names_no_files_is_refused(published: Published, cache: Path) -> None:
    version = published()
    cache.mkdir(parents=True)
    refused(replace(version, manifest={}), f"does not tell the SHA-256 of {CONFIG} and {WEIGHTS}", cache)
    refused(replace(version, sha256="0" * 64), "does not tell", cache)


def unsigned(told: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in told.items() if name != "signature"}


SIGNATURES: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "unsigned": (unsigned, "is not signed"),
    "another's": (lambda told: signed(told, (OTHER,)), "was signed by another key"),
    "no text": (lambda told: {**told, "signature": 7}, "was signed by another key"),
    "half a surrogate": (lambda told: {**told, "signature": "\ud800"}, "was signed by another key"),
    "tampered": (lambda told: {**told, "parent": "policy@v6-aaaaaa"}, "changed since"),
    "tampered rank": (lambda told: {**told, "rank": told["rank"] + 1}, "changed since"),
}


@pytest.mark.parametrize(("attack", "words"), SIGNATURES.values(), ids=SIGNATURES.keys())
def test_a_manifest_that_no_key_signed_is_refused(
    published: Published, cache: Path, attack: Callable[[Any], Any], words: str
) -> None:
    version = published(keys=(KEY,))
    file = Path(version.uri, MANIFEST)
    file.write_text(json.dumps(attack(json.loads(file.read_text()))))
    refused(version, words, cache, keys=(KEY,))
    with pytest.raises(ValueError, match=f"kto-ray adapters sign {version.name}"):
        fetch(version, MAX_RANK, (KEY,))
    if attack is unsigned:
        fetch(version, MAX_RANK, ())


def test_who_may_change_the_store_too_still_has_no_key(published: Published, cache: Path) -> None:
    version = published(keys=(KEY,))
    write(Path(version.uri), tensors(dtype=torch.bfloat16))
    refused(known_anew(version), "was signed by another key, or changed since", cache, keys=(KEY,))


def test_a_whole_dora_adapter_is_kept_for_who_evaluates_it_by_hand(published: Published, cache: Path) -> None:
    version = published()
    folder = Path(version.uri)
    shaped((4, 8), (8, 4), lora_magnitude_vector=(8,))(folder)
    settings(use_dora=True, lora_alpha=8, r=4)(folder)
    assert Path(fetch(known_anew(version), MAX_RANK, ()), CONFIG).exists()
