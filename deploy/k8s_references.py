"""What holds for every pod here, of Ray or of a Job: pod security, what it names exists, caches and disk. Part of
k8s_check.py."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from k8s_documents import Document, containers, limit, number
from k8s_image import cache_errors
from k8s_security import restricted_errors

SECRET_ENV = re.compile(r"(PASSWORD|SECRET|TOKEN|SALT|STORE_URL|ACCESS_KEY)")


@dataclass(frozen=True)
class Around:
    """What pods are held against: the other documents of the target, what README.md says, and the image's variables."""

    documents: list[Document]
    readme: str
    image: Mapping[str, str]

    def named(self, kind: str) -> dict[str, Document]:
        return {d["metadata"]["name"]: d for d in self.documents if d["kind"] == kind}


def spec_errors(spec: Document, around: Around) -> list[str]:
    """Of a pod's spec as Kubernetes gets it."""
    errors = restricted_errors(spec)
    account = spec.get("serviceAccountName", "default")
    if account not in around.named("ServiceAccount"):
        errors.append(f"serviceAccountName is {account!r}, and there is no such ServiceAccount here")
    errors += [error for volume in spec.get("volumes", []) for error in _volume_errors(volume, around)]
    errors += disk_errors(spec)
    names = {volume["name"] for volume in spec.get("volumes", [])}
    for container in containers(spec):
        where = f"container {container['name']!r}"
        mounts = container.get("volumeMounts", [])
        unnamed = [mount["name"] for mount in mounts if mount["name"] not in names]
        errors += [f"{where}: volumeMount {name!r} names no volume" for name in unnamed]
    # KubeRay copies a container's environment, so the same error would be told of several.
    errors += dict.fromkeys(error for each in containers(spec) for error in _environment_errors(each, around))
    ray = spec["containers"][0]
    given = {entry["name"]: str(entry["value"]) for entry in ray.get("env", []) if "value" in entry}
    return errors + cache_errors({**around.image, **given}, [mount["mountPath"] for mount in ray["volumeMounts"]])


def _environment_errors(container: Document, around: Around) -> Iterator[str]:
    entries = container.get("env", [])
    for name in sorted({entry["name"] for entry in entries if sum(e["name"] == entry["name"] for e in entries) > 1}):
        yield f"env {name} is set twice"
    for entry in entries:
        name = entry["name"]
        if SECRET_ENV.search(name) and "value" in entry:
            yield f"env {name} holds a value; a secret must come from a secretKeyRef"
        yield from secret_errors(entry, f"env {name}", around.readme)


def secret_errors(entry: Mapping[str, Any], where: str, readme: str) -> list[str]:
    """The Secrets are made by whoever runs the cluster, so k8s/README.md must name each with its keys."""
    reference = entry.get("valueFrom", {}).get("secretKeyRef")
    if reference is None:
        return []
    missing = [word for word in (reference.get("name"), reference["key"]) if f"`{word}`" not in readme]
    return [f"{where}: {word!r} is not documented in k8s/README.md" for word in missing]


def _volume_errors(volume: Document, around: Around) -> Iterator[str]:
    name = volume["name"]
    if "configMap" in volume and (config := volume["configMap"].get("name")) not in around.named("ConfigMap"):
        yield f"volume {name!r}: there is no ConfigMap {config!r}"
    if "persistentVolumeClaim" in volume:
        claim = volume["persistentVolumeClaim"]["claimName"]
        if claim not in around.named("PersistentVolumeClaim"):
            yield f"volume {name!r}: there is no PersistentVolumeClaim {claim!r}"
    if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
        yield f"volume {name!r}: emptyDir has no sizeLimit, so it may fill the node's disk; set one"


def disk_errors(spec: Document) -> Iterator[str]:
    """Kubernetes ends a pod whose volumes, logs and layer outgrow its limit, so that must hold the volumes' limits."""
    disks = [volume["emptyDir"] for volume in spec.get("volumes", []) if "emptyDir" in volume]
    wanted = sum(number(disk.get("sizeLimit")) for disk in disks if disk.get("medium") != "Memory")
    held = limit(spec["containers"][0], "ephemeral-storage")
    asked = number(spec["containers"][0].get("resources", {}).get("requests", {}).get("ephemeral-storage"))
    if min(held, asked) < wanted:
        yield (
            f"ephemeral-storage is {min(held, asked) / 2**30:g}Gi, and the emptyDir volumes may grow to "
            f"{wanted / 2**30:g}Gi; raise the request and the limit, or lower the sizeLimits"
        )


def mounted_config_errors(spec: Document, path: str | None, around: Around) -> Iterator[str]:
    """A config that is read must be a key of a mounted ConfigMap."""
    configs, held = around.named("ConfigMap"), set()
    volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
    for mount in spec["containers"][0].get("volumeMounts", []):
        config = configs.get(volumes.get(mount["name"], {}).get("configMap", {}).get("name"), {})
        held |= {f"{mount['mountPath']}/{key}" for key in config.get("data", {})}
    if path not in held:
        yield f"it reads {path}, but the mounts hold {sorted(held)}"
