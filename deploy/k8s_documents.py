"""What the parts of k8s_check.py share: Kubernetes documents as kubectl renders them, and how to look into them."""

from __future__ import annotations

import difflib
import re
import subprocess
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Document = dict[str, Any]

DECIMAL = {"m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
UNITS = DECIMAL | {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}


class CheckError(RuntimeError):
    """The check cannot run: no kubectl, no schemas, a kustomization that does not render."""


def render(target: Path) -> list[Document]:
    """The documents of a kustomization.

    Raises:
        CheckError: kubectl refuses it; the message is kubectl's.
    """
    result = subprocess.run(["kubectl", "kustomize", str(target)], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise CheckError(f"kubectl kustomize failed: {result.stderr.strip()}")
    return [document for document in yaml.load_all(result.stdout, yaml.CSafeLoader) if document]


def unknown(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"
    return f"field {key!r} does not exist; {hint}"


def clusters_of(documents: list[Document]) -> list[Document]:
    """The RayCluster specs of the RayServices."""
    return [document["spec"]["rayClusterConfig"] for document in documents if document["kind"] == "RayService"]


def groups(cluster: Document) -> Iterator[tuple[str, Document]]:
    """Each group's name and pod template."""
    yield "headGroupSpec", cluster["headGroupSpec"]["template"]
    for group in cluster.get("workerGroupSpecs", []):
        yield group["groupName"], group["template"]


def ray_container(pod: Document) -> Document:
    """KubeRay runs Ray in the first one."""
    return typing.cast(Document, pod["spec"]["containers"][0])


def jobs_of(documents: list[Document]) -> list[Document]:
    return [document for document in documents if document["kind"] == "Job"]


def containers(pod_spec: Document) -> list[Document]:
    return [*pod_spec.get("initContainers", []), *pod_spec["containers"]]


def environment(container: Document) -> dict[str, Document]:
    return {entry["name"]: entry for entry in container.get("env", [])}


def number(quantity: str | int | float | None) -> float:
    """A Kubernetes quantity ("500m", "40Gi") as a number; 0 where there is none."""
    matched = re.fullmatch(r"([0-9.]+)([a-zA-Z]*)", str(quantity or 0))
    assert matched and matched[2] in UNITS, quantity  # its schema has been checked
    return float(matched[1]) * UNITS[matched[2]]


def is_gpu(resource: str) -> bool:
    """Whether KubeRay counts it as Ray's GPUs (IsGPUResourceKey)."""
    return resource.endswith("gpu") or re.search(r"nvidia\.com/mig-\d+g\.\d+gb$", resource) is not None


def limit(container: Document, resource: str) -> float:
    return number(container.get("resources", {}).get("limits", {}).get(resource))
