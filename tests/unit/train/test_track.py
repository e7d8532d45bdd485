"""What a run shows of itself: JSON lines, a picture, TensorBoard events, a real MLflow, Prometheus."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import asdict, replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from kto_ray.config import Config
from kto_ray.paths import Paths
from kto_ray.records.adapters import AdapterVersion
from kto_ray.records.training import StepRecord, Trained, TrainOutcome, TrainProgress
from kto_ray.records.trainings import TrainingRun, ended_run
from kto_ray.status.metrics import as_text, metrics
from kto_ray.store import Store, trainings
from kto_ray.train import track
from kto_ray.train.job import summarize
from kto_ray.train.plot import draw

RUN = "round-1"


def steps(n: int) -> list[StepRecord]:
    return [
        StepRecord(
            step=i,
            rows=8 * i,
            loss=0.5 / i,
            kl=0.1 * i,
            reward_desirable=0.2 * i,
            reward_undesirable=None if i == 2 else -0.1 * i,
            margin=None if i == 2 else 0.3 * i,
            grad_norm=1.5,
            learning_rate=1e-3,
            tokens=100,
            seconds=0.5,
            tokens_per_s=200.0,
            at=1000.0 + i,
        )
        for i in range(1, n + 1)
    ]


def config(tmp_path: Path, mlflow: bool = False) -> Config:
    uri = f"sqlite:///{tmp_path}/mlflow.db" if mlflow else None
    return Config.model_validate({"home": str(tmp_path / "home"), "train": {"mlflow_uri": uri}})


def test_json_lines_come_back_as_they_went_in(tmp_path: Path) -> None:
    uri, made = str(tmp_path / "run" / "metrics.jsonl"), steps(4)
    assert track.read_steps(uri) == ()
    track.write_steps(uri, made[:1])
    for record in made[1:]:
        track.append_step(uri, record)
    assert track.read_steps(uri) == tuple(made)


def test_a_restart_doubles_no_step(tmp_path: Path) -> None:
    """Five steps logged, killed, resumed from the checkpoint of the third: its own first write holds one to four."""
    uri = str(tmp_path / "metrics.jsonl")
    track.write_steps(uri, steps(1))
    for record in steps(5)[1:]:
        track.append_step(uri, record)
    track.write_steps(uri, steps(4))
    track.append_step(uri, steps(5)[4])
    assert [record.step for record in track.read_steps(uri)] == [1, 2, 3, 4, 5]


def test_a_line_that_a_kill_cut_short_is_not_there(tmp_path: Path) -> None:
    uri = tmp_path / "metrics.jsonl"
    track.write_steps(str(uri), steps(3))
    uri.write_bytes(uri.read_bytes()[:-20])
    assert track.read_steps(str(uri)) == tuple(steps(2))


def test_a_diverged_step_is_still_json(tmp_path: Path) -> None:
    uri = str(tmp_path / "metrics.jsonl")
    track.write_steps(uri, [replace(steps(1)[0], loss=math.nan, grad_norm=math.inf)])
    assert json.loads(Path(uri).read_text())["loss"] is None
    (back,) = track.read_steps(uri)
    assert math.isnan(back.loss) and math.isnan(back.grad_norm) and back.kl == 0.1


def test_the_plot_is_a_picture_of_every_figure() -> None:
    broken = [*steps(5), replace(steps(6)[5], loss=math.nan, kl=math.nan)]
    root = ElementTree.fromstring(draw(broken, "round-7"))
    assert root.tag.endswith("svg") and root.get("viewBox")
    drawn = [path.get("d", "") for path in root.iter("{http://www.w3.org/2000/svg}path")]
    assert sum(d.count("L") >= 3 for d in drawn) >= 7, "seven curves in six panels"


def test_publishing_draws_and_writes_tensorboard_events(tmp_path: Path) -> None:
    settings = config(tmp_path)
    home = Paths(settings.home)
    track.publish(settings, RUN, "snapshot", "FINISHED")
    assert not Path(settings.home).exists(), "a run without a step shows nothing"
    track.write_steps(home.run_metrics(RUN), steps(3))
    for _ in range(2):  # a second attempt replaces what the first left
        track.publish(settings, RUN, "snapshot", "FINISHED")
    assert Path(home.training_plot(RUN)).read_bytes().lstrip().startswith(b"<?xml")
    (events,) = Path(home.run_events(RUN)).parent.iterdir()
    assert scalars(events, "train/loss") == [(1, 0.5), (2, 0.25), (3, pytest.approx(0.5 / 3))]
    assert [step for step, _ in scalars(events, "train/margin")] == [1, 3]


def scalars(file: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboardX.proto.event_pb2 import Event

    data, found = file.read_bytes(), []
    while data:  # length (8 bytes), its checksum (4), the event, its checksum (4)
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        found += [(event.step, value.simple_value) for value in event.summary.value if value.tag == tag]
        data = data[16 + length :]
    return found


def test_mlflow_gets_every_step_once(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    settings = config(tmp_path, mlflow=True)
    client = MlflowClient(tracking_uri=settings.train.mlflow_uri)
    attempts: tuple[tuple[int, track.Status], ...] = ((2, "FAILED"), (4, "FINISHED"))
    for so_far, status in attempts:  # the second went on from the first
        track.write_steps(Paths(settings.home).run_metrics(RUN), steps(so_far))
        track.publish(settings, RUN, "snapshot-9", status)
        experiment = client.get_experiment_by_name("kto_ray")
        assert experiment is not None
        (found,) = client.search_runs([experiment.experiment_id])
        assert found.info.run_name == RUN and found.info.status == status
    assert found.data.tags["snapshot"] == "snapshot-9" and found.data.params["beta"] == "0.3"
    for name, want in (("loss", [r.loss for r in steps(4)]), ("margin", [0.3, 0.9, 1.2])):
        logged = client.get_metric_history(found.info.run_id, name)
        assert [m.value for m in sorted(logged, key=lambda m: m.step)] == pytest.approx(want)


def test_an_mlflow_that_is_not_there_is_told_and_fails_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    settings = config(tmp_path)
    train = settings.train.model_copy(update={"mlflow_uri": f"sqlite:///{tmp_path}/file/mlflow.db"})
    settings = settings.model_copy(update={"train": train})
    track.write_steps(Paths(settings.home).run_metrics(RUN), steps(2))
    with caplog.at_level(logging.WARNING):
        track.publish(settings, RUN, "snapshot", "FINISHED")
    assert "run round-1 is not in MLflow" in caplog.text


def scraped(store: Store, settings: Config) -> str:
    with store.read() as tx:
        return as_text(metrics(tx, settings)).decode()


def test_prometheus_shows_the_training_while_it_runs_and_after(sqlite_store: Store, tmp_path: Path) -> None:
    settings = config(tmp_path)
    assert "kto_ray_train_" not in scraped(sqlite_store, settings)
    progress = TrainProgress(3, 9, 0.4, 0.2, None, 150.0, 12.5, 77, 5.0)
    with sqlite_store.write() as tx:
        trainings.put(tx, TrainingRun("round-1", "s", 1.0, round=1, figures=asdict(progress)))
    text = scraped(sqlite_store, settings)
    for line in ("round 1.0", "step 3.0", "steps 9.0", "loss 0.4", "kl_nats 0.2", "seconds 12.5"):
        assert f"\nkto_ray_train_{line}\n" in text
    assert "kto_ray_train_reward_margin" not in text, "a step of one class has no margin"
    figures = asdict(summarize(TrainOutcome(tuple(steps(9)), "float32"), "adapter"))
    version = AdapterVersion("policy@v1", 1, 1.0, "uri", "0" * 64, "s", None, "policy@base", 8)
    with sqlite_store.write() as tx:
        trainings.put(tx, ended_run("round-1", Trained(version, tuple(figures.pop("history")), figures), 1.0, 9.0, 1))
    text = scraped(sqlite_store, settings)
    for line in ("step 9.0", "steps 9.0", "tokens_per_second 200.0", "seconds 4.5"):
        assert f"\nkto_ray_train_{line}\n" in text
    assert "\nkto_ray_train_reward_margin 2.69" in text
