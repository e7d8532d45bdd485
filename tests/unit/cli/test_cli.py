"""The command line: exit codes, JSON, clear errors, and no heavy import before it is needed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kto_ray.app import _as_ctrl_c, check_home, check_keys
from kto_ray.cli import app
from kto_ray.config import load_config
from kto_ray.records.keys import Scope
from kto_ray.records.replicas import LoadFault, ReplicaReport
from kto_ray.store import adapters, completions, feedback, keys, leases, open_store, replicas, schema
from kto_ray.store.spool import Spool
from tests.support.provenance import seal
from tests.support.rows import completion, thumb

KTO_RAY = [sys.executable, "-m", "kto_ray"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*KTO_RAY, *arguments], capture_output=True, text=True, timeout=120)


def made(home: Path) -> None:
    """A store that is empty."""
    open_store(f"sqlite:///{home}/kto.db").close()


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, kto_ray.cli; print(sorted({'torch', 'ray', 'vllm', 'transformers', 'trl'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    assert run("--help").returncode == 0


def test_a_typo_in_the_config_is_told_in_one_line(tmp_path: Path) -> None:
    told = run("status", "--set", f"home={tmp_path}", "--set", "kto.betta=1")
    assert told.returncode == 2 and "did you mean 'beta'" in told.stderr and "Traceback" not in told.stderr


@pytest.mark.parametrize(
    "asked",
    [
        ("status",),
        ("rollout", "get"),
        ("rollout", "replay"),
        ("adapters",),
        ("lineage", "ann"),
        ("feedback", "held"),
        ("feedback", "drop", "f1"),
        ("feedback", "export", "{}/out.jsonl"),
        ("keys", "list"),
        ("keys", "revoke", "k1"),
        ("evaluate", "policy@v1"),
        ("erase", "ann", "--yes"),
        ("data", "archive", "--set", "retention.completions_days=9"),
    ],
)
def test_where_there_is_no_store_a_command_that_reads_makes_none(asked: tuple[str, ...], tmp_path: Path) -> None:
    """As of a home that is mistyped."""
    home = tmp_path / "typo"
    told = CliRunner().invoke(app, [*(each.format(tmp_path) for each in asked), "--set", f"home={home}"])
    words = f"there is no store at '{home}/kto.db' (home='{home}'); name where yours is by --set home="
    assert isinstance(told.exception, ValueError) and str(told.exception).startswith(words)
    assert list(tmp_path.iterdir()) == []


def test_status_of_an_empty_store(tmp_path: Path) -> None:
    made(tmp_path)
    told = run("status", "--json", "--set", f"home={tmp_path}")
    assert told.returncode == 0
    state = json.loads(told.stdout)
    assert state["loop"]["round"] is None and state["readiness"]["champion"] == "policy@base"


def test_import_export_and_again(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "completion": f"a{i}", "label": i % 2 == 0, "user": f"u{i}"} for i in range(7)]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    home = f"home={tmp_path}/home"
    first = run("feedback", "import", str(tmp_path / "in.jsonl"), "--json", "--set", home)
    assert json.loads(first.stdout) == {"rows": 7, "imported": 7, "already_there": 0}
    again = run("feedback", "import", str(tmp_path / "in.jsonl"), "--json", "--set", home)
    assert json.loads(again.stdout)["imported"] == 0
    exported = run("feedback", "export", str(tmp_path / "out.jsonl"), "--json", "--set", home)
    assert json.loads(exported.stdout)["exported"] == 7
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 7


def test_a_later_file_with_another_label_is_a_second_thought(tmp_path: Path) -> None:
    home = f"home={tmp_path}/home"
    for name, label in (("up", True), ("down", False), ("up", True)):
        row = {"prompt": "q", "completion": "a", "label": label, "user": "u"}
        (tmp_path / name).write_text(json.dumps(row))
        run("feedback", "import", str(tmp_path / name), "--set", home)
    labels = json.loads(run("status", "--json", "--set", home).stdout)["loop"]["labels"]
    assert (labels["desirable"], labels["undesirable"]) == (0, 1)


def test_what_is_held_is_shown_released_and_dropped(tmp_path: Path) -> None:
    home = f"home={tmp_path}/home"
    store = open_store(f"sqlite:///{tmp_path}/home/kto.db")
    with store.write() as tx:
        for i in range(33):
            completions.insert(tx, completion(f"c{i}"))
            feedback.record(tx, thumb(f"f{i}", f"c{i}"))
    store.close()
    shown = json.loads(run("feedback", "held", "--json", "--set", home).stdout)
    assert shown["held"] == {"burst": 3} and [event["id"] for event in shown["events"]] == ["f30", "f31", "f32"]
    assert "burst" in run("feedback", "held", "--set", home).stdout
    assert "3 held (3 burst)" in run("status", "--set", home).stdout
    assert json.loads(run("feedback", "drop", "f30", "--json", "--set", home).stdout) == {"dropped": 1}
    released = run("feedback", "release", "--why", "burst", "--user", "ann", "--json", "--set", home)
    assert json.loads(released.stdout) == {"released": 2}
    labels = json.loads(run("status", "--json", "--set", home).stdout)["loop"]["labels"]
    assert labels["desirable"] == 32
    for wrong, words in (((), "name either ids"), (("--why", "boredom"), "reasons are: same_text")):
        told = run("feedback", "release", *wrong, "--set", home)
        assert told.returncode == 2 and words in told.stderr


def test_what_was_refused_from_the_spool_is_tried_again(tmp_path: Path) -> None:
    held = Spool(tmp_path / "home" / "spool" / "0")
    held.refuse(completion("c1"), "the table was odd")
    held.close()
    home = f"home={tmp_path}/home"
    for expected in ({"stored": 1, "refused_again": 0}, {"stored": 0, "refused_again": 0}):
        assert json.loads(run("feedback", "retry", "--json", "--set", home).stdout) == expected


def test_a_broken_import_stores_nothing(tmp_path: Path) -> None:
    good = json.dumps({"prompt": "q", "completion": "a", "label": True})
    (tmp_path / "in.jsonl").write_text(f"{good}\n{{broken\n")
    told = run("feedback", "import", str(tmp_path / "in.jsonl"), "--set", f"home={tmp_path}/home")
    assert told.returncode == 2 and "line 2" in told.stderr
    assert not (tmp_path / "home" / "kto.db").exists()


def test_a_taken_port_and_a_missing_model_are_told_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        told = run("serve", "--set", f"home={tmp_path}", "--set", f"http.port={port}")
    assert told.returncode == 2 and str(port) in told.stderr and "http.port" in told.stderr
    told = run("serve", "--set", f"home={tmp_path}", "--set", f"model.id={tmp_path}/none", "--set", f"http.port={port}")
    assert told.returncode == 2 and "model.id" in told.stderr


def test_an_address_of_another_machine_is_not_called_taken(tmp_path: Path) -> None:
    told = run("serve", "--set", f"home={tmp_path}", "--set", "http.host=192.0.2.1")
    assert told.returncode == 2 and "http.host is '192.0.2.1'" in told.stderr and "taken" not in told.stderr


def test_beyond_loopback_a_service_needs_a_key_before_anything_starts(tmp_path: Path) -> None:
    config = load_config(None, (f"home={tmp_path}", "http.host=0.0.0.0"))
    with pytest.raises(ValueError, match=r"http.host is '0.0.0.0'.*kto-ray keys create"):
        check_keys(config)
    check_keys(load_config(None, (f"home={tmp_path}",)))
    check_keys(load_config(None, (f"home={tmp_path}", "http.host=0.0.0.0", "http.proxy_secret=0123456789abcdef")))
    with open_store(config.database_url).write() as tx:
        keys.create(tx, "ops", [Scope.ADMIN], False, config.salt, 1.0)
    check_keys(config)


def test_a_home_that_another_service_uses_is_told_before_anything_starts(tmp_path: Path) -> None:
    config = load_config(None, (f"home={tmp_path}", "http.port=18123"))
    lease = (leases.CONTROLLER, f"{os.uname().nodename}:x", os.getpid())
    with open_store(config.database_url).write() as tx:
        leases.take(tx, *lease)
    told = run("serve", "--set", f"home={tmp_path}", "--set", "http.port=18123")
    assert told.returncode == 2 and f"process {os.getpid()}" in told.stderr and "--set home=DIR" in told.stderr
    with open_store(config.database_url).write() as tx:  # what is left of one that was killed
        tx.execute(schema.leases.update().values(pid=2**22 + 1))
    check_home(config)


def test_nothing_is_asked_of_a_service_that_does_not_run(tmp_path: Path) -> None:
    told = run("rollout", "promote", "--set", f"home={tmp_path}")
    assert told.returncode == 2 and "start it with `kto-ray serve`" in told.stderr
    made(tmp_path)
    assert "no service runs here" in run("status", "--set", f"home={tmp_path}").stdout


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (("rollout", "promote", "--candidate", "policy@v9"), "promote takes --rollout, and not --candidate (got 'pol"),
        (("rollout", "rollback", "--leave", "v1", "--rollout", "zz"), "rollback takes --leave, and not --rollout"),
        (("rollout", "approve", "--rollout", "zz"), "approve takes --candidate, and not --rollout"),
        (("rollout", "abort", "--why", "late"), "abort takes --rollout, and not --why"),
        (("rollout", "reset-budget"), "a reset of the error budget says why, for the record: --why TEXT"),
        (("rollout", "replay", "--leave", "v1"), "replay takes --rollout, and not --leave"),
        (("rollout", "--candidate", "v1"), "get takes no --candidate"),
        (("loop", "run", "--round", "3"), "run takes no --round"),
        (("loop", "stop"), "loop 'stop' does not exist; use run or abort"),
    ],
)
def test_an_act_passes_over_no_option_that_is_not_its_own(asked: tuple[str, ...], words: str, tmp_path: Path) -> None:
    told = CliRunner().invoke(app, [*asked, "--set", f"home={tmp_path}"])
    assert isinstance(told.exception, ValueError) and words in str(told.exception)


def test_status_says_who_answers_for_a_champion_that_cannot_be_loaded(tmp_path: Path) -> None:
    best = "policy@v2-bbbbbb"
    store = open_store(f"sqlite:///{tmp_path}/kto.db")
    with store.write() as tx:
        adapters.set_alias(tx, "champion", best, 1.0)
        fault = LoadFault("its file [weights] has changed", refused=True, tries=4, age_s=9.0)
        replicas.report(tx, ReplicaReport("r", "node", 1, (), errors={best: fault}), 15.0)
    store.close()
    told = " ".join(run("status", "--set", f"home={tmp_path}").stdout.replace("\u2502", "").split())
    assert f"cannot load {best} for 9 s (4 tries): its file [weights] has changed" in told
    assert f"policy@base answers in place of the champion {best}" in told


def test_a_file_that_is_no_database_and_one_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "kto.db").write_text("this is a note, and not a database\n" * 40)
    told = run("status", "--set", f"home={tmp_path}")
    assert told.returncode == 2 and "file is not a database" in told.stderr
    made(tmp_path / "home")
    told = run("feedback", "export", f"{tmp_path}/none/x", "--set", f"home={tmp_path}/home")
    assert told.returncode == 2 and "none/x" in told.stderr and "cannot be written" in told.stderr


def test_doctor_tells_of_a_missing_package_what_mends_it(tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from kto_ray.cli import main; main()"
    without = [sys.executable, "-c", code, "doctor", "--json", "--set", f"home={tmp_path}"]
    told = subprocess.run(without, capture_output=True, text=True, timeout=120)
    (torch,) = [check for check in json.loads(told.stdout) if check["name"] == "torch"]
    assert told.returncode == 1 and not torch["ok"] and "make setup" in torch["fix"]


def test_unknown_adapter_and_actions(tmp_path: Path) -> None:
    made(tmp_path)
    home = f"home={tmp_path}"
    assert "not in the store" in run("adapters", "show", "policy@v9", "--set", home).stderr
    assert "not in the store" in run("evaluate", "policy@v9", "--set", home).stderr
    assert run("rollout", "explode", "--set", home).returncode == 2
    nobody = run("erase", "nobody", "--yes", "--set", home)
    assert nobody.returncode == 2 and "in neither the store nor a snapshot" in nobody.stderr
    both = run("erase", "ann", "--completion", "c1", "--set", home)
    assert both.returncode == 2 and "either a USER or --completion ID" in both.stderr


def test_old_texts_are_archived_and_a_completion_erased(tmp_path: Path) -> None:
    home = ("--set", f"home={tmp_path}")
    with open_store(f"sqlite:///{tmp_path}/kto.db").write() as tx:
        for name in ("c1", "c2"):
            completions.insert(tx, completion(name, user="ann"))  # of 1970
    nothing = run("data", "archive", *home)
    assert nothing.returncode == 2 and "retention.completions_days" in nothing.stderr
    done = run("data", "archive", "--json", *home, "--set", "retention.completions_days=30")
    assert done.returncode == 0 and json.loads(done.stdout)["completions"] == 2, done.stderr
    gone = run("erase", "--completion", "c1", "--yes", "--json", *home)
    told = json.loads(gone.stdout)
    assert (told["erased"], told["rows"]["completions"], told["archived"], told["remains"]) == (True, 1, 1, [])


@pytest.mark.parametrize(
    "handler", [signal.default_int_handler, signal.SIG_IGN], ids=["a terminal", "a background job"]
)
def test_sigterm_ends_a_service_as_ctrl_c_does(handler: Any) -> None:
    before = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            _as_ctrl_c()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_service_that_is_asked_to_end_before_it_is_ready_ends_well(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def interrupted(*_: Any) -> Iterator[str]:
        raise KeyboardInterrupt
        yield ""

    monkeypatch.setattr("kto_ray.app.running", interrupted)
    assert CliRunner().invoke(app, ["serve"]).exit_code == 0


def test_a_snapshot_is_shown_and_an_unknown_one_is_told(tmp_path: Path) -> None:
    (tmp_path / "snapshots").mkdir()
    manifest, uri = seal(tmp_path / "snapshots", {"train": [("c1", "ann")], "holdout": [("c2", "bo")]}, 1)
    Path(uri).rename(tmp_path / "snapshots" / manifest.id)
    told = run("data", "show", manifest.id, "--rows", "1", "--json", "--set", f"home={tmp_path}")
    assert told.returncode == 0 and json.loads(told.stdout)["id"] == manifest.id, told.stderr
    unknown = run("data", "show", "none", "--set", f"home={tmp_path}")
    assert unknown.returncode == 2 and "none" in unknown.stderr
