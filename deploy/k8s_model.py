"""The base model on a shared volume: the Job that fetches it leaves the mark that pods wait for.
Part of k8s_check.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from k8s_config import read_config
from k8s_documents import Document, clusters_of, environment, groups, jobs_of, ray_container
from k8s_targets import COMMIT

from kto_ray.config import ConfigError

PREFIX = "kto-ray-model-"  # of the Job's name; the commit follows
CACHE = "HF_HUB_CACHE"
LETTERS = 12  # of a commit that names hold
WRITABLE = "ReadWriteMany"


def model_errors(documents: list[Document]) -> list[str]:
    """Of the Job that fetches, of the claim, and of the pods that wait; without such a Job no pod may wait."""
    fetches = [job for job in jobs_of(documents) if job["metadata"]["name"].startswith(PREFIX)]
    pods = [(name, pod["spec"]) for cluster in clusters_of(documents) for name, pod in groups(cluster)]
    if not fetches:
        return [
            f"{group}: container {each['name']!r} waits for a model that no Job {PREFIX}* fetches"
            for group, spec in pods
            for each in spec.get("initContainers", [])
            if ".complete" in script(each)
        ]
    (job, *_) = fetches
    spec, name = job["spec"]["template"]["spec"], job["metadata"]["name"]
    cache = cache_of(ray_container({"spec": spec}))
    if cache is None:
        return [f"Job {name}: env {CACHE} is missing; set it to the folder of the claim that the pods read"]
    mark = f"{cache}/{name.removeprefix(PREFIX)}.complete"
    claim = claim_at(cache, spec, ray_container({"spec": spec}))
    errors = list(_fetch_errors(name, spec, mark, claim)) + _claim_errors(claim, documents)
    for group, each in pods:
        errors += [f"{group}: {error}" for error in _pod_errors(each, cache, claim)]
        if group != "headGroupSpec":
            errors += [f"{group}: {error}" for error in _wait_errors(each, mark, claim)]
    return errors


def _fetch_errors(name: str, spec: Document, mark: str, claim: str | None) -> Iterator[str]:
    container = ray_container({"spec": spec})
    lines = script(container).strip().splitlines()
    if not lines or lines[-1].strip() != f"touch {mark}":
        yield f"Job {name}: its last line must be `touch {mark}`, for which the pods wait; it is {lines[-1:]}"
    flags = [word for word in container.get("command", [])[1:] if word.startswith("-")]
    if not any("e" in word for word in flags):
        yield f"Job {name}: command {container.get('command')} goes on after a failed fetch; start it by `sh -euc`"
    if claim is None:
        yield f"Job {name}: {CACHE} lies on no PersistentVolumeClaim, so the model goes with the pod; mount the claim"


def _claim_errors(claim: str | None, documents: list[Document]) -> list[str]:
    claims = {d["metadata"]["name"]: d["spec"] for d in documents if d["kind"] == "PersistentVolumeClaim"}
    modes = claims.get(claim or "", {}).get("accessModes", [])
    if claim not in claims or WRITABLE in modes:  # one that is missing is told of the pod
        return []
    return [f"PersistentVolumeClaim {claim}: accessModes is {modes}; pods of several nodes share it: use {WRITABLE}"]


def _pod_errors(spec: Document, cache: str, claim: str | None) -> Iterator[str]:
    ray = ray_container({"spec": spec})
    if (own := cache_of(ray)) != cache:
        yield f"{CACHE} is {own!r}, and the Job fetches the model to {cache!r}; set the same (components/model-cache*)"
    elif (found := claim_at(cache, spec, ray)) != claim:
        yield f"{CACHE} {cache} lies on the claim {found!r}, and the Job's on {claim!r}; mount the same"


def _wait_errors(spec: Document, mark: str, claim: str | None) -> list[str]:
    wait = re.compile(rf"until \[ -[ef] {re.escape(mark)} \]; do sleep \d+; done")
    first = spec.get("initContainers", [])
    waits = [each for each in first if wait.fullmatch(script(each).strip())]
    if not waits:
        others = [script(each).strip() for each in first]
        return [f"no init container waits for {mark}, which the Job leaves, by `until [ -e ... ]`; there are {others}"]
    folder = str(PurePosixPath(mark).parent)
    return [
        f"container {each['name']!r} mounts no claim {claim!r} at {folder}, and would wait for ever; mount it"
        for each in waits
        if claim_at(folder, spec, each) != claim
    ]


def script(container: Document) -> str:
    """What its shell runs, with the container's own variables put in, and without quotation marks."""
    words = [*container.get("command", []), *container.get("args", [])]
    known = {name: str(entry.get("value", "")) for name, entry in environment(container).items()}

    def value(found: re.Match[str]) -> str:
        return known.get(found[1] or found[2], found[0])

    return re.sub(r"\$(?:(\w+)|[{(](\w+)[})])", value, words[-1] if words else "").replace('"', "")


def cache_of(container: Document) -> str | None:
    value = environment(container).get(CACHE, {}).get("value")
    return None if value is None else str(value)


def claim_at(path: str, spec: Document, container: Document) -> str | None:
    """The claim that a container's folder lies on; None where it lies on none."""
    claims = {v["name"]: v.get("persistentVolumeClaim", {}).get("claimName") for v in spec.get("volumes", [])}
    mounts = [m for m in container.get("volumeMounts", []) if PurePosixPath(path).is_relative_to(m["mountPath"])]
    nearest = max(mounts, key=lambda mount: len(mount["mountPath"]), default=None)
    return None if nearest is None else claims.get(nearest["name"])


def annotation_errors(config: Document) -> list[str]:
    """The annotation from which the component takes the commit must be that of the config beside it."""
    given = config["metadata"].get("annotations", {}).get(COMMIT)
    wanted = commit_of(config)
    if wanted is None or given == wanted:
        return []
    return [
        f"annotation {COMMIT} is {given!r}, and model.revision in config.yaml begins {wanted!r}; make them the same"
    ]


def commit_of(config: Document) -> str | None:
    """The model's commit in a ConfigMap, cut as names have it; "none" where nothing is fetched, None if unread."""
    try:
        model = read_config(config.get("data", {}).get("config.yaml", ""), []).model
    except ConfigError:  # told of the ConfigMap
        return None
    return (model.revision or "main")[:LETTERS] if model.of_hub else "none"
