"""The plain Kubernetes documents: their schema, and what a budget, a network policy and a Job must hold beyond it. Part
of k8s_check.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import kubernetes_validate
import yaml
from alembic.script import ScriptDirectory
from k8s_documents import Document, clusters_of, containers, environment, groups, jobs_of, ray_container, unknown
from k8s_model import PREFIX, commit_of
from k8s_ready import budget_errors, migrate_errors
from k8s_references import Around, mounted_config_errors, spec_errors

KUBERNETES = "1.31"  # the oldest version that these manifests are for, so no field is younger
ENFORCE = "pod-security.kubernetes.io/enforce"
MIGRATES = "kto-ray-migrate-"  # of a Job's name; the newest migration follows
CONFIG = "/etc/kto-ray/config.yaml"


def kubernetes_errors(document: Document) -> list[str]:
    """Against the schema of its kind, strictly."""
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        return [f"Kubernetes {KUBERNETES} has no kind {document['kind']!r} in {document['apiVersion']!r}"]
    except kubernetes_validate.ValidationError as error:
        where = ".".join(map(str, error.path)) or "top level"
        return [f"{where}: {_words(error)}"]
    return []


def _words(error: kubernetes_validate.ValidationError) -> str:
    if error.validator != "additionalProperties":
        return str(error.message)
    known = list(error.schema["properties"])
    return "; ".join(unknown(key, known) for key in error.instance if key not in known)


def plain_errors(document: Document, around: Around, root: Path) -> list[str]:
    kind = document["kind"]
    if kind == "PodDisruptionBudget":
        spec = document["spec"]
        errors = _selector_errors(spec.get("selector", {}), around)
        return [*errors, *_budget_errors(spec), *budget_errors(spec, around.documents)]
    if kind == "NetworkPolicy":
        return _selector_errors(document["spec"].get("podSelector", {}), around)
    if kind == "Job":
        return list(job_errors(document, around, root))
    return []


def namespace_errors(root: Path) -> list[str]:
    """Its schema, and that Kubernetes itself keeps pods out that are not held to "restricted"."""
    document: Document = yaml.safe_load((root / "k8s/namespace.yaml").read_text())
    given = document.get("metadata", {}).get("labels", {}).get(ENFORCE)
    errors = kubernetes_errors(document)
    if given != "restricted":
        errors.append(f"label {ENFORCE} is {given!r}, and must be restricted: else any pod of any right is let in")
    return errors


def _selector_errors(selector: Document, around: Around) -> list[str]:
    """It must find pods of the RayService; KubeRay adds a group's labels to its pods."""
    wanted = selector.get("matchLabels")
    members = [g for c in clusters_of(around.documents) for g in [c["headGroupSpec"], *c.get("workerGroupSpecs", [])]]
    labels = [g["template"].get("metadata", {}).get("labels", {}) | g.get("labels", {}) for g in members]
    if labels and not any(wanted and wanted.items() <= pod.items() for pod in labels):
        return [f"the selector {wanted} matches no pod of the RayService"]
    return []


def _budget_errors(spec: Document) -> Iterator[str]:
    if "maxUnavailable" in spec:
        yield "spec.maxUnavailable needs an owner with a scale subresource, which a RayCluster lacks"
    if spec.get("unhealthyPodEvictionPolicy") != "AlwaysAllow":
        yield "spec.unhealthyPodEvictionPolicy must be AlwaysAllow: a pool of which no pod is ready would block a drain"


def job_errors(job: Document, around: Around, root: Path) -> Iterator[str]:
    """A Job cannot be changed once it is made: its name tells what it does, and it goes when it is done."""
    name, spec = job["metadata"]["name"], job["spec"]["template"]["spec"]
    wanted = _job_name(name, around, root)
    if wanted == f"{PREFIX}none":
        yield "there is no model to fetch: config.yaml names none of Hugging Face; leave components/model-cache out"
    elif wanted is not None and name != wanted:
        yield f"metadata.name is {name!r}, and must be {wanted!r}: a Job of an old name is not run again"
    for container in containers(spec):
        text = " ".join([*container.get("command", []), *container.get("args", [])])
        if "--config" in text and CONFIG not in text:
            yield f"container {container['name']!r} must read {CONFIG}"
    if name.startswith(MIGRATES):
        yield from migrate_errors(job)
        if f"job/{name} " not in around.readme:
            yield f"k8s/README.md does not wait for job/{name}; write the name there"
    if "ttlSecondsAfterFinished" not in job["spec"]:
        yield "spec.ttlSecondsAfterFinished is missing: another image of the same name could not be applied"
    if spec.get("restartPolicy") != "OnFailure":
        yield f"restartPolicy is {spec.get('restartPolicy')!r}; use OnFailure, so that one pod waits out an outage"
    yield from mounted_config_errors(spec, CONFIG, around)
    yield from _same_environment(spec, around)
    yield from spec_errors(spec, around)


def _job_name(name: str, around: Around, root: Path) -> str | None:
    """By the newest migration, or by the model's commit; None for other Jobs."""
    if name.startswith(MIGRATES):
        return f"{MIGRATES}{migration_head(root)}"
    if name.startswith(PREFIX):
        commits = [commit for config in around.named("ConfigMap").values() if (commit := commit_of(config)) is not None]
        return f"{PREFIX}{commits[0]}" if commits else None
    return None


def migration_head(root: Path) -> str:
    """The newest revision of the store's schema."""
    return str(ScriptDirectory(str(root / "kto_ray/store/migrations")).get_current_head())


def _same_environment(spec: Document, around: Around) -> Iterator[str]:
    """What a Job's program is told must be what the service's is told; but the store's URL may be another role's."""
    clusters = clusters_of(around.documents)
    ray = {n: e for c in clusters for _, pod in groups(c) for n, e in environment(ray_container(pod)).items()}
    for container in containers(spec):
        for name, entry in environment(container).items():
            if name in ray and entry != ray[name] and name != "KTO_RAY__STORE_URL":
                yield f"container {container['name']!r}: env {name} differs from that of the Ray pods"


def image_errors(documents: list[Document]) -> list[str]:
    """The service and what prepares it must be one program."""
    specs = [pod["spec"] for c in clusters_of(documents) for _, pod in groups(c)]
    specs += [job["spec"]["template"]["spec"] for job in jobs_of(documents)]
    images = sorted({container["image"] for spec in specs for container in containers(spec)})
    return [] if len(images) < 2 else [f"there are several images, {', '.join(images)}; all must run the same"]
