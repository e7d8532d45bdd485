"""One measurement of `bench data`, the inside of its process."""

from __future__ import annotations

import gc
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa

from kto_ray.bench.data import SOURCES, Built, Fed, Streamed
from kto_ray.bench.own_process import answer
from kto_ray.bench.sealed_rows import Memory, job_of
from kto_ray.cluster import start_ray
from kto_ray.config import Config
from kto_ray.data.manifest import load_manifest
from kto_ray.data.seal import seal
from kto_ray.data.stream import training_dataset
from kto_ray.model import resolve_model
from kto_ray.paths import Paths
from kto_ray.records.snapshots import SnapshotManifest

GIB = 2**30
DRAINED = 1000  # micro-batches
SAMPLE_S = 1.0
RESTING_CORES = 0.2


def build(config: Config) -> Built:
    """Freeze the store, and watch the clock and the memory."""
    resolve_model(config.model)  # what is done once a machine is no part of it
    start_ray(config)
    began = time.perf_counter()
    marks: list[tuple[str, float]] = []
    workers = Workers()
    workers.start()
    manifest = seal(config, tell=lambda stage: marks.append((stage, time.perf_counter())))
    ended = time.perf_counter()
    workers.done.set()
    stages = zip(marks, [*marks[1:], ("", ended)], strict=True)
    return Built(
        snapshot=manifest.id,
        rows=sum(shard.rows for shard in manifest.shards),
        build_s=ended - began,
        stage_s={name: until - since for (name, since), (_, until) in stages},
        driver_peak_gib=_peak("self") / GIB,
        worker_peak_gib=workers.peak / GIB,
    )


class Workers(threading.Thread):
    """Samples the peak memory of this process's descendants that are Ray workers; a short-lived one may be missed."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.done = threading.Event()
        self.peak = 0

    def run(self) -> None:
        while not self.done.wait(SAMPLE_S):
            for process in psutil.Process().children(recursive=True):
                try:
                    if process.name().startswith("ray::"):
                        self.peak = max(self.peak, _peak(str(process.pid)))
                except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                    continue  # it ended between being listed and being looked at


def _peak(process: str) -> int:
    """Bytes. VmHWM and not getrusage, whose figure a process inherits from the one that started it."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0  # a zombie has no memory


class Timed:
    """A stream whose consumer's waits are kept. The first one lasts until the stream has read ahead and rests; what
    other processes had used by then is kept too."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.waits: list[float] = []
        self.used_before_s = 0.0

    def iter_batches(self, **how: Any) -> Iterator[pa.Table]:
        began = time.perf_counter()
        for batch in self.stream.iter_batches(**how):
            if not self.waits:
                _until_ray_rests()
                self.used_before_s = _descendants_s()
            self.waits.append(time.perf_counter() - began)
            yield batch
            began = time.perf_counter()


def _until_ray_rests() -> None:
    """Until this process's descendants use less than RESTING_CORES over a second."""
    before = _descendants_s()
    while True:
        time.sleep(SAMPLE_S)
        now = _descendants_s()
        if now - before < RESTING_CORES * SAMPLE_S:
            return
        before = now


def _descendants_s() -> float:
    """CPU seconds that they have used."""
    used = 0.0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it ended between being listed and being looked at
            times = process.cpu_times()
            used += times.user + times.system
    return used


def streamed(config: Config, snapshot: str, steps: int, repeats: int) -> Streamed:
    """The same training steps, fed in turn by the stream and, twice, from memory; and the same draining of both."""
    start_ray(config)
    uri = Paths(config.home).snapshot(snapshot)
    manifest = load_manifest(uri)
    micro = manifest.micro_batch
    batches = min(DRAINED, (manifest.n_desirable + manifest.n_undesirable) // micro)
    dataset = training_dataset(uri, manifest)
    table = pa.concat_tables(_first(dataset, batches * micro, micro))
    sources = dict(zip(SOURCES, (dataset, None, None), strict=True))

    def feed(source: Any) -> Timed:
        return Timed(Memory(table) if source is None else source.streaming_split(1)[0])

    def fed(source: Any, references: str) -> Fed:
        rows = feed(source)
        steps_s, waits = _steps(config, manifest, rows, min(steps + 1, batches), references)
        ray_cores = (_descendants_s() - rows.used_before_s) / sum(steps_s)
        del rows
        gc.collect()  # ends the stream
        return Fed(steps_s[1:], waits[1:], waits[0], ray_cores)

    drained_us = {name: _drained_us(feed(sources[name]), batches, micro) for name in ("stream", "memory")}
    fed_by: dict[str, list[Fed]] = {name: [] for name in sources}
    with tempfile.TemporaryDirectory() as references:
        for source in (None, dataset, None):  # the first trainings of a process are slower
            fed(source, references)
        for repeat in range(repeats):
            first = repeat % len(SOURCES)
            for name in SOURCES[first:] + SOURCES[:first]:
                fed_by[name].append(fed(sources[name], references))
    epoch_steps = (manifest.n_desirable + manifest.n_undesirable) // micro
    return Streamed(**fed_by, drained_us=drained_us, epoch_steps=epoch_steps)


def _first(dataset: Any, rows: int, micro: int) -> list[pa.Table]:
    tables = []
    for table in dataset.iter_batches(batch_size=micro, batch_format="pyarrow"):
        tables.append(table)
        if len(tables) * micro >= rows:
            break
    return tables


def _drained_us(stream: Timed, batches: int, micro: int) -> float:
    from kto_ray.train.batches import RowBatches

    for _ in RowBatches(stream, batches * micro, micro, rank=0, world=1):
        pass
    steady = stream.waits[1:]
    return 1e6 * sum(steady) / max(len(steady), 1)


def _steps(
    config: Config, manifest: SnapshotManifest, stream: Timed, steps: int, references: str
) -> tuple[list[float], list[float]]:
    """Seconds of each training step and of the wait for its rows. What is known of the reference is in `references`."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, set_seed

    from kto_ray.bench.inside.train import Clock
    from kto_ray.train.batches import RowBatches
    from kto_ray.train.kto import kto_arguments, lora_config
    from kto_ray.train.trainer import RowTrainer

    micro, rows = manifest.micro_batch, steps * manifest.micro_batch
    torch.set_num_threads(config.train.threads)
    set_seed(0)
    path = resolve_model(config.model)
    kto = config.kto.model_copy(update={"accumulate": 1, "epochs": 1, "micro_batch": micro})
    data = config.data.model_copy(update={"max_length": manifest.max_length})
    config = config.model_copy(update={"kto": kto, "data": data})
    with tempfile.TemporaryDirectory() as folder:
        job, clock = job_of(config, rows, (1.0, 1.0), references), Clock()
        trainer = RowTrainer(
            job,
            RowBatches(stream, rows, micro, rank=0, world=1),
            model=path,
            train_dataset=Dataset.from_dict({"prompt_ids": [[0]], "completion_ids": [[0]], "label": [True]}),
            processing_class=AutoTokenizer.from_pretrained(path, revision=config.model.revision),
            peft_config=lora_config(job),
            args=kto_arguments(job, f"{folder}/out", steps),
            callbacks=[clock],
        )
        trainer.train()
        trainer.references.save()
    return clock.seconds, stream.waits[:steps]


def measure(asked: dict[str, Any]) -> dict[str, Any]:
    config, work = Config.model_validate(asked["config"]), asked["work"]
    what = work.pop("what")
    return asdict(build(config) if what == "build" else streamed(config, **work))


if __name__ == "__main__":
    answer(measure)
