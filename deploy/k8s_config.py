"""The kto-ray config of the pods: `kto_ray.config` reads it, and the pools have room for what it asks. Part of
k8s_check.py."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from k8s_documents import Document, clusters_of, groups, is_gpu, limit, number, ray_container, unknown
from k8s_serve import replicas_of

from kto_ray.config import Config, ConfigError, load_config

SIZED_BY_SERVE = {"Policy": "replicas", "Gateway": "gateways"}  # deployments, and their fields in the section `serve`


def configmap_errors(document: Document, documents: list[Document]) -> list[str]:
    data, clusters = document.get("data", {}), clusters_of(documents)
    errors = [f"data: {unknown(key, ['config.yaml'])}" for key in data if key != "config.yaml"]
    if "config.yaml" not in data:
        return errors
    try:
        config = read_config(data["config.yaml"], [ray_container(pod) for c in clusters for _, pod in groups(c)])
    except ConfigError as error:
        return errors + str(error).splitlines()
    for service in (d for d in documents if d["kind"] == "RayService"):
        serve = yaml.safe_load(service["spec"]["serveConfigV2"])
        errors += _sized_twice(data["config.yaml"], serve)
        errors += pool_errors(config, serve, service["spec"]["rayClusterConfig"])
    return errors


def read_config(text: str, containers: list[Document]) -> Config:
    """The config as the pods see it: KTO_RAY__A__B sets a.b; a stand-in takes the place of a secret's value."""
    overrides = {"store_url": "postgresql+psycopg://database/kto", "salt": "secret"}
    for entry in (entry for container in containers for entry in container.get("env", [])):
        if entry["name"].startswith("KTO_RAY__") and "value" in entry:
            overrides[entry["name"].removeprefix("KTO_RAY__").lower().replace("__", ".")] = entry["value"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.yaml")
        path.write_text(text)
        return load_config(path, tuple(f"{key}={value}" for key, value in overrides.items()))


def _sized_twice(text: str, serve: Document) -> list[str]:
    section = yaml.safe_load(text).get("serve", {})
    twice = [(field, name) for name, field in SIZED_BY_SERVE.items() if field in section and replicas_of(serve, name)]
    return [
        f"serve.{field} is {section[field]}, but the Serve config's num_replicas of {name} decides; remove it here"
        for field, name in twice
    ]


@dataclass(frozen=True)
class Work:
    """What a pool has to hold: `count` bundles, each of which must lie in one pod."""

    pool: str
    device: str
    count: int
    cpus: float
    gpus: float
    words: str


def work_of(config: Config, serve: Document) -> tuple[Work, Work]:
    section, train = config.serve, config.train
    gpu = section.device == "gpu"
    wide = section.tensor_parallel_size
    policies = Work(
        "serve",
        section.device,
        replicas_of(serve, "Policy") or section.replicas,
        0.0 if gpu else wide,
        wide * section.gpus_per_worker if gpu else 0.0,
        f"serve.tensor_parallel_size {wide} x serve.gpus_per_worker {section.gpus_per_worker:g}",
    )
    workers = Work(
        "train",
        train.device,
        train.workers,
        train.cpus_per_worker,
        train.gpus_per_worker if train.device == "gpu" else 0.0,
        f"train.cpus_per_worker {train.cpus_per_worker} and train.gpus_per_worker {train.gpus_per_worker:g}",
    )
    return policies, workers


def pool_errors(config: Config, serve: Document, cluster: Document) -> list[str]:
    """The config must ask for pools that exist, and for no more than their pods hold."""
    works, workers = work_of(config, serve), cluster.get("workerGroupSpecs", [])
    label = config.ray.pool_label
    if label is None:
        if len(workers) > 1:
            return ["ray.pool_label is not set, so serving and training would not keep to their pools"]
        return list(_room_errors(works, workers, "the one pool"))
    errors: list[str] = []
    for work in works:
        members = [group for group in workers if group.get("labels", {}).get(label) == work.pool]
        if members:
            errors += _room_errors((work,), members, f"the pool {label}={work.pool}")
        else:
            errors.append(f"ray.pool_label is {label!r}, but no worker group has the label {label}: {work.pool}")
    return errors


def _room_errors(works: tuple[Work, ...], members: list[Document], pool: str) -> Iterator[str]:
    """By filling the pods, the widest bundles first: a bundle lies in one pod, for its parts talk all the time."""
    pods = [list(_holds(ray_container(g["template"]))) for g in members for _ in range(g.get("replicas", 0))]
    held = sum(gpus for _, gpus in pods)
    if held and all(work.device == "cpu" for work in works):
        yield f"{works[0].pool}.device is 'cpu', but {pool} holds {held:g} GPUs"
    for work in sorted(works, key=lambda work: -work.gpus):
        if not any(_fits(work, _holds(ray_container(group["template"]))) for group in members):
            yield f"{work.pool}: {work.words} fit no single pod of {pool}; lower them, or give its pods more"
            continue
        placed = sum(_place(work, pods) for _ in range(work.count))
        if placed < work.count:
            yield f"{work.pool}: {work.count} of {work.words} are asked for, and {pool} has room for {placed}"


def _holds(container: Document) -> tuple[float, float]:
    """CPUs and GPUs that KubeRay tells Ray of."""
    limits = container.get("resources", {}).get("limits", {})
    return limit(container, "cpu"), sum(number(limits[name]) for name in limits if is_gpu(name))


def _fits(work: Work, room: tuple[float, float] | list[float]) -> bool:
    return work.cpus <= room[0] and work.gpus <= room[1]


def _place(work: Work, pods: list[list[float]]) -> bool:
    for pod in pods:
        if _fits(work, pod):
            pod[0], pod[1] = pod[0] - work.cpus, pod[1] - work.gpus
            return True
    return False
