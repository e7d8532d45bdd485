"""Private copies: what was checked is what is loaded, and none stays longer than somebody needs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from kto_ray.adapters import files
from kto_ray.adapters.files import check_adapter, fetch, fetched, let_go, sweep
from kto_ray.adapters.publish import sign
from kto_ray.config import Config
from kto_ray.paths import StorageAway, filesystem
from tests.conftest import FreePort
from tests.support.adapters import tensors, write
from tests.unit.adapters.conftest import Published

MAX_RANK = 16
KEY, NEXT = "k" * 32, "n" * 32
CONFIG, WEIGHTS, MANIFEST = "adapter_config.json", "adapter_model.safetensors", "manifest.json"

HOLDS = """
import sys
from kto_ray.adapters.files import fetch
from tests.conftest import FreePort
from tests.support.adapters import AdapterVersion
import json
version = AdapterVersion(**json.loads(sys.argv[1]))
print(fetch(version, 16, ()), flush=True)
sys.stdin.read()
"""


@pytest.fixture(params=["local", "memory"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "home") if request.param == "local" else f"memory://copies-{tmp_path.name}/kto"


def test_the_bytes_that_were_checked_are_loaded_from_a_folder_of_our_own(
    published: Published, cache: Path, home: str
) -> None:
    version = published(home=home)
    copy = Path(fetch(version, MAX_RANK, ()))
    assert copy.parent == cache and {file.name for file in copy.iterdir()} == {CONFIG, WEIGHTS, MANIFEST}
    assert [folder.stat().st_mode & 0o777 for folder in (copy, cache)] == [0o700, 0o700]
    fs, folder = fsspec.core.url_to_fs(version.uri)
    before = (copy / WEIGHTS).read_bytes()
    fs.pipe_file(f"{folder}/{WEIGHTS}", b"swapped after it was checked")
    assert (copy / WEIGHTS).read_bytes() == before
    fs.rm(folder, recursive=True)
    assert fetch(version, MAX_RANK, ()) == str(copy), "what lies there no more is loaded from the copy"


@pytest.mark.parametrize("damage", [b"cut", None])
def test_a_damaged_copy_is_fetched_again(published: Published, cache: Path, home: str, damage: bytes | None) -> None:
    version = published(home=home)
    copy = Path(fetch(version, MAX_RANK, ()))
    if damage is None:
        (copy / WEIGHTS).unlink()
        (copy / WEIGHTS).symlink_to("/dev/zero")
    else:
        (copy / WEIGHTS).write_bytes(damage)
    assert fetch(version, MAX_RANK, ()) == str(copy)
    check_adapter(version, MAX_RANK, (), str(copy))
    assert [file.name for file in cache.iterdir()] == [copy.name]


def test_each_file_is_read_once(published: Published, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who swaps it at any time gets it refused, or loses: it is not read again after it was checked."""
    version = published()
    taken = []
    read = files._read_file

    def counted(uri: str, folder: int, name: str, limit: int | None) -> bytes:
        data = read(uri, folder, name, limit)
        if uri == version.uri:
            taken.append(name)
            Path(uri, name).write_bytes(b"swapped")
        return data

    monkeypatch.setattr(files, "_read_file", counted)
    copy = fetch(version, MAX_RANK, ())
    assert sorted(taken) == sorted([CONFIG, WEIGHTS, MANIFEST])
    check_adapter(version, MAX_RANK, (), copy)


def test_a_copy_goes_with_the_last_process_that_holds_it(published: Published, cache: Path) -> None:
    version = published()
    copy = Path(fetch(version, MAX_RANK, ()))
    told = {name: getattr(version, name) for name in version.__slots__}
    command = [sys.executable, "-c", HOLDS, json.dumps(told)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None and other.stdout is not None
        assert other.stdout.readline().strip() == str(copy)
        let_go(str(copy))
        sweep(())
        assert copy.is_dir(), "another process holds it"
        other.kill()
        other.wait()
    sweep((version,))
    assert copy.is_dir(), "it is wanted"
    sweep(())
    assert not copy.exists()


def test_who_needs_a_copy_for_a_while_leaves_nothing_in_the_cache(published: Published, cache: Path) -> None:
    version = published()
    with fetched(version, MAX_RANK, ()) as copy, fetched(version, MAX_RANK, ()) as again:
        assert copy == again and [str(each) for each in cache.iterdir()] == [copy]
    with pytest.raises(ZeroDivisionError), fetched(version, MAX_RANK, ()):
        raise ZeroDivisionError
    assert list(cache.iterdir()) == []


def test_a_copy_that_is_let_go_while_it_is_taken_is_there(published: Published, cache: Path) -> None:
    version = published()
    for _ in range(20):
        copy = fetch(version, MAX_RANK, ())
        leaving = threading.Thread(target=let_go, args=(copy,))
        leaving.start()
        again = fetch(version, MAX_RANK, ())
        leaving.join()
        check_adapter(version, MAX_RANK, (), again)
        let_go(again)
    assert list(cache.iterdir()) == []


def test_a_folder_that_cannot_be_reached_is_no_refusal(published: Published, cache: Path) -> None:
    version = published()
    os.chmod(version.uri, 0)
    try:
        if os.getuid():
            with pytest.raises(PermissionError):
                fetch(version, MAX_RANK, ())
    finally:
        os.chmod(version.uri, 0o700)


def test_keys_change_one_after_the_other(published: Published, cache: Path, tmp_path: Path) -> None:
    version = published(keys=(KEY,))
    fetch(version, MAX_RANK, (KEY,))
    fetch(version, MAX_RANK, (NEXT, KEY))
    with pytest.raises(ValueError, match="another key"):
        fetch(version, MAX_RANK, (NEXT,))
    config = Config.model_validate({"home": str(tmp_path), "adapters": {"signing_keys": (NEXT, KEY)}})
    sign(config, version)
    fetch(version, MAX_RANK, (NEXT,))
    with pytest.raises(ValueError, match="another key"):
        fetch(replace(version), MAX_RANK, (KEY,))


def test_what_was_never_signed_is_signed_by_what_the_store_knows(
    published: Published, cache: Path, tmp_path: Path
) -> None:
    version = published()
    with pytest.raises(ValueError, match="signing_keys is empty"):
        sign(Config(home=str(tmp_path)), version)
    config = Config.model_validate({"home": str(tmp_path), "adapters": {"signing_keys": (KEY,)}})
    sign(config, version)
    fetch(version, MAX_RANK, (KEY,))
    write(Path(version.uri), {name: 2 * tensor for name, tensor in tensors().items()})
    with pytest.raises(ValueError, match="changed after it was published"):
        sign(config, version)


def test_object_storage_is_asked_anew_and_its_absence_is_no_refusal(
    published: Published, cache: Path, monkeypatch: pytest.MonkeyPatch, free_port: FreePort
) -> None:
    port = free_port()
    named = {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "REGION": "us-east-1", "MAX_ATTEMPTS": "1"}
    for name, value in {**named, "ENDPOINT_URL": f"http://127.0.0.1:{port}"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    filesystem("s3://bucket")[0].clear_instance_cache()
    fs = fsspec.filesystem("s3", skip_instance_cache=True)  # as another process, whose changes ours does not see
    server = ThreadedMotoServer("127.0.0.1", port)
    server.start()
    try:
        fs.mkdir("bucket")
        version = published(home="s3://bucket/kto")
        config = f"{version.uri}/{CONFIG}"
        sound = fs.cat_file(config)
        for gone in (True, False):
            _ = fs.rm_file(config) if gone else fs.pipe_file(config, b"")
            for _ in range(2):
                with pytest.raises(ValueError, match=CONFIG):
                    fetch(version, MAX_RANK, ())
            fs.pipe_file(config, sound)
            copy = fetch(version, MAX_RANK, ())
            check_adapter(version, MAX_RANK, (), copy)
            let_go(copy)
    finally:
        server.stop()
    with pytest.raises(StorageAway):
        fetch(version, MAX_RANK, ())
    assert list(cache.iterdir()) == []
