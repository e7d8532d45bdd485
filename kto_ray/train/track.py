"""What a run shows of itself: JSON lines while it trains; when it ends, well or not, a plot, TensorBoard events and, if
asked, an MLflow run. An MLflow server that cannot be reached fails no round."""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from kto_ray.config import Config
from kto_ray.paths import Paths, append, filesystem, write_atomic
from kto_ray.records.training import StepRecord

log = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED"]  # as MLflow names them

EXPERIMENT = "kto_ray"
MLFLOW_BATCH = 1000  # metrics that MLflow takes at once
ALWAYS = ("loss", "kl", "grad_norm")  # numbers of every step, which JSON cannot hold when the run has diverged


def write_steps(uri: str, records: Iterable[StepRecord]) -> None:
    """Make the file anew: a restart goes on from a checkpoint, and what was logged after it must not stay."""
    write_atomic(uri, b"".join(map(_line, records)))


def append_step(uri: str, record: StepRecord) -> None:
    append(uri, _line(record))


def read_steps(uri: str) -> tuple[StepRecord, ...]:
    """The steps of a run so far; none before its first. A number that was NaN or infinite comes back as NaN.

    A line that a kill cut short is not there.
    """
    fs, path = filesystem(uri)
    if not fs.exists(path):
        return ()
    whole, _, _ = fs.cat_file(path).rpartition(b"\n")
    return tuple(_record(json.loads(line)) for line in whole.splitlines())


def publish(config: Config, run: str, snapshot: str, status: Status) -> None:
    """Draw and hand on what the run's JSON lines hold, again over what an earlier attempt left."""
    home = Paths(config.home)
    steps = read_steps(home.run_metrics(run))
    if not steps:
        return
    from kto_ray.train.plot import draw

    write_atomic(home.training_plot(run), draw(steps, run))
    write_atomic(home.run_events(run), _events(steps))
    if config.train.mlflow_uri is not None:
        _to_mlflow(config, config.train.mlflow_uri, run, snapshot, steps, status)


def _line(record: StepRecord) -> bytes:
    facts = {k: v if v is None or math.isfinite(v) else None for k, v in asdict(record).items()}
    return json.dumps(facts).encode() + b"\n"


def _record(facts: dict[str, Any]) -> StepRecord:
    lost: dict[str, Any] = {name: math.nan for name in ALWAYS if facts[name] is None}
    return StepRecord(**{**facts, **lost})


def _figures(record: StepRecord) -> dict[str, float]:
    return {k: float(v) for k, v in asdict(record).items() if v is not None and k not in ("step", "at")}


def _events(steps: tuple[StepRecord, ...]) -> bytes:
    """A TensorBoard event file."""
    from tensorboardX import SummaryWriter

    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            for record in steps:
                for name, value in _figures(record).items():
                    writer.add_scalar(f"train/{name}", value, record.step)
        (file,) = Path(folder).iterdir()
        return file.read_bytes()


def _to_mlflow(
    config: Config, uri: str, run: str, snapshot: str, steps: tuple[StepRecord, ...], status: Status
) -> None:
    """One MLflow run for one of ours, whatever the number of attempts: a later one adds the steps not yet there."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read as it is imported
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param
    from mlflow.exceptions import MlflowException

    try:
        client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        number = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT)
        same = client.search_runs([number], f"tags.mlflow.runName = '{run}' and tags.home = '{config.home}'")
        tags = {"snapshot": snapshot, "model": config.model.id, "home": config.home}
        target = (same[0] if same else client.create_run(number, tags=tags, run_name=run)).info.run_id
        known = max((m.step for m in client.get_metric_history(target, "loss")), default=0)
        params = [Param(k, str(v)) for k, v in config.kto.model_dump().items()]
        client.log_batch(target, params=params)
        new = [
            Metric(name, value, int(1000 * record.at), record.step)
            for record in steps
            if record.step > known
            for name, value in _figures(record).items()
        ]
        for start in range(0, len(new), MLFLOW_BATCH):
            client.log_batch(target, new[start : start + MLFLOW_BATCH])
        client.set_terminated(target, status)
    except (MlflowException, OSError) as error:
        log.warning("run %s is not in MLflow at %s: %s", run, uri, error)
