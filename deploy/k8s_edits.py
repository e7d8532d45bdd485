"""What an edit of the manifests does, by the hash with which KubeRay 1.7 tells one RayCluster from another; and the
table of it in k8s/README.md, which `python deploy/k8s_edits.py` writes and k8s_check.py holds to the manifests."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml
from k8s_documents import Document, ray_container, render

ROOT = Path(__file__).resolve().parent.parent
NOTHING, IN_PLACE, IGNORED, NEW = "nothing", "in place", "silently ignored", "new cluster"
TARGETS = {"k8s/base": "`base`, `overlays/cpu`", "k8s/overlays/single-gpu": "`overlays/single-gpu`"}
REPLICAS = ("replicas", "minReplicas", "maxReplicas")
BEGIN, END = "<!-- made by deploy/k8s_edits.py -->", "<!-- until here -->"


def cluster_hash(cluster: Document) -> str:
    """Of a RayCluster's spec, without what KubeRay leaves out (GenerateHashWithoutReplicasAndWorkersToDelete in
    utils/util.go, rayClusterSpecForHashing in rayservice_controller.go). Equal where KubeRay's is, and no further."""
    spec = copy.deepcopy(cluster)
    workers = spec.get("workerGroupSpecs", [])
    for field in ("suspend", "upgradeStrategy"):
        spec.pop(field, None)
    for group in workers:
        for field in (*REPLICAS, "scaleStrategy"):  # of which workersToDelete is the only field
            group.pop(field, None)
    for group in (spec["headGroupSpec"], *workers):
        for field in ("tolerations", "schedulingGates"):
            group["template"]["spec"].pop(field, None)
    return hashlib.sha1(json.dumps(spec, sort_keys=True).encode()).hexdigest()


def effect(before: Document, after: Document) -> str:
    """What KubeRay does with an edited RayService (shouldUpdateCluster, shouldPrepareNewCluster)."""
    old, new = (service["spec"]["rayClusterConfig"] for service in (before, after))
    if cluster_hash(old) == cluster_hash(new):
        if before["spec"]["serveConfigV2"] != after["spec"]["serveConfigV2"]:
            return IN_PLACE
        return NOTHING if old == new else IGNORED
    kept = new | {"workerGroupSpecs": new.get("workerGroupSpecs", [])[: len(old.get("workerGroupSpecs", []))]}
    if cluster_hash(old) == cluster_hash(kept):
        return IN_PLACE  # groups were appended
    return IGNORED if after["spec"].get("upgradeStrategy", {}).get("type") == "None" else NEW


Change = Callable[[Document], object]  # of a rendered RayService, in place


@dataclass(frozen=True)
class Edit:
    """Edits of one kind, in words, and what follows from them."""

    words: str
    changes: tuple[Change, ...]
    then: str


def _first(service: Document) -> Document:
    group: Document = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    return group


def _pod(service: Document) -> Document:
    spec: Document = _first(service)["template"]["spec"]
    return spec


def _groups(service: Document) -> list[Document]:
    groups: list[Document] = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    return groups


def _of_serve(change: Change) -> Change:
    """A change of the application in the Serve config, which a RayService holds as text."""

    def applied(service: Document) -> None:
        document = yaml.safe_load(service["spec"]["serveConfigV2"])
        change(document["applications"][0])
        service["spec"]["serveConfigV2"] = yaml.safe_dump(document)

    return applied


EDITS = (
    Edit(
        "a new adapter, a promotion, a rollback, a key",
        (lambda service: None,),
        "rows in the store; the custom resource is never touched",
    ),
    Edit(
        "`config.yaml`",
        (lambda service: None,),  # it is in the ConfigMap, by a name without a hash
        "the pods see the new file after a minute; nobody reads it before the next line",
    ),
    Edit(
        "`KTO_RAY_CONFIG_REVISION` in the Serve config, raised",
        (_of_serve(lambda app: app["runtime_env"]["env_vars"].update(KTO_RAY_CONFIG_REVISION="edited")),),
        "Serve replaces gateways and policies one after another",
    ),
    Edit(
        "`num_replicas` in the Serve config",
        (_of_serve(lambda app: app["deployments"][0].update(num_replicas=9)),),
        "replicas come or go, and nothing restarts; the pool must have room",
    ),
    Edit(
        "`replicas`, `minReplicas`, `maxReplicas` of a pool",
        (
            lambda service: _first(service).update(replicas=9),
            lambda service: _first(service).update(minReplicas=9),
            lambda service: _first(service).update(maxReplicas=9),
        ),
        "holds for the next cluster only; patch the RayCluster too",
    ),
    Edit(
        "`tolerations`, `schedulingGates`",
        (
            lambda service: _pod(service).update(tolerations=[{"operator": "Exists"}]),
            lambda service: _pod(service).update(schedulingGates=[{"name": "example.com/wait"}]),
        ),
        "holds for the next cluster only",
    ),
    Edit(
        "a pool added at the end",
        (lambda service: _groups(service).append(copy.deepcopy(_first(service)) | {"groupName": "added"}),),
        "its pods come",
    ),
    Edit(
        "image, env, labels, resources, volumes, grace, `rayStartParams`; a pool renamed or removed",
        (
            lambda service: ray_container(_first(service)["template"]).update(image="kto-ray:edited"),
            lambda service: ray_container(_first(service)["template"])["env"].append({"name": "A", "value": "b"}),
            lambda service: _first(service).update(labels={"kto-ray/pool": "edited"}),
            lambda service: ray_container(_first(service)["template"]).update(resources={}),
            lambda service: _pod(service).update(volumes=[]),
            lambda service: _pod(service).update(terminationGracePeriodSeconds=1),
            lambda service: _first(service).update(rayStartParams={"num-cpus": "1"}),
            lambda service: _first(service).update(groupName="edited"),
            lambda service: _groups(service).pop(),
        ),
        "a second cluster takes over when it is healthy, and the first ends: twice the GPUs for a while; with one GPU, "
        "delete the RayCluster",
    ),
)


def table(services: dict[str, Document]) -> str:
    """The table, with what each edit does to the manifests as they are.

    Args:
        services: the RayService of each target.
    """
    columns = {words: [_effects(services[target], edit) for edit in EDITS] for target, words in TARGETS.items()}
    lines = [f"| edit | {' | '.join(columns)} | |", f"| --- | {'--- | ' * len(columns)}--- |"]
    for edit, effects in zip(EDITS, zip(*columns.values(), strict=True), strict=True):
        lines.append(f"| {edit.words} | {' | '.join(effects)} | {edit.then} |")
    return "\n".join(lines)


def _effects(service: Document, edit: Edit) -> str:
    found = set()
    for change in edit.changes:
        edited = copy.deepcopy(service)
        change(edited)
        found.add(effect(service, edited))
    return " or ".join(sorted(found))


def rendered(root: Path) -> dict[str, Document]:
    """The RayService of each target."""
    return {target: next(d for d in render(root / target) if d["kind"] == "RayService") for target in TARGETS}


def readme_errors(root: Path, services: dict[str, Document]) -> list[str]:
    """k8s/README.md must say what the table says."""
    if f"{BEGIN}\n{table(services)}\n{END}" in (root / "k8s/README.md").read_text():
        return []
    return ["its table of edits is not what the manifests do; run `python deploy/k8s_edits.py`"]


def write(readme: Path, made: str) -> None:
    """Put the table between its marks."""
    before, _, rest = readme.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}\n{made}\n{END}{after}")


if __name__ == "__main__":
    write(ROOT / "k8s/README.md", table(rendered(ROOT)))
