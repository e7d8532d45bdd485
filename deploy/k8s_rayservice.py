"""What a RayService must hold beyond its schema: the rules of KubeRay's operator, references to what they name, and the
Serve config and the kto-ray config that it runs on. Part of k8s_check.py."""

from __future__ import annotations

import ast
import difflib
import re
import tempfile
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from kto_ray.config import Config, ConfigError, load_config

Document = dict[str, Any]

NAME_LIMITS = {"RayService": 47, "RayJob": 47, "RayCluster": 53}  # beyond, KubeRay's generated names would not fit
REQUIRED_ENV = ("KTO_RAY__STORE_URL", "KTO_RAY__SALT")
SECRET_ENV = re.compile(r"(PASSWORD|SECRET|TOKEN|SALT|STORE_URL|ACCESS_KEY)")


def unknown(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"
    return f"field {key!r} does not exist; {hint}"


# --- KubeRay documents ---------------------------------------------------------------------------------------------


def rayservice_errors(document: Document, documents: list[Document], serve: Document, root: Path) -> list[str]:
    kind, name = document["kind"], document["metadata"].get("name", "")
    if kind != "RayService":
        return [f"only a RayService is expected here, got a {kind}"]
    errors = []
    if not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name) or len(name) > NAME_LIMITS[kind]:
        errors.append(f"metadata.name {name!r} must be a DNS label of at most {NAME_LIMITS[kind]} characters")
    embedded = yaml.safe_load(document["spec"].get("serveConfigV2", ""))
    if embedded != serve:
        errors.append("spec.serveConfigV2 differs from deploy/serve.yaml; they must be the same document")
    errors += [f"spec.serveConfigV2: {error}" for error in serve_errors(embedded, root)]
    cluster = document["spec"]["rayClusterConfig"]
    errors += operator_errors(cluster)
    readme = (root / "k8s/README.md").read_text()
    for group, pod in groups(cluster):
        errors += [f"{group}: {error}" for error in pod_errors(pod, documents, readme, embedded)]
    return errors + secret_errors(cluster.get("gcsFaultToleranceOptions", {}).get("redisPassword", {}), "redis", readme)


def operator_errors(cluster: Document) -> list[str]:
    """What KubeRay's operator refuses although its schema allows it (ValidateRayClusterSpec), and the Ray version."""
    import ray

    errors = []
    if cluster.get("rayVersion") != ray.__version__:
        errors.append(f"rayVersion is {cluster.get('rayVersion')!r}, but the application runs on Ray {ray.__version__}")
    if cluster["headGroupSpec"].get("rayStartParams", {}).get("num-cpus") != "0":
        errors.append("headGroupSpec.rayStartParams.num-cpus must be '0': work on the head endangers the whole cluster")
    for group in [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])]:
        where = group.get("groupName", "headGroupSpec")
        start = group.get("rayStartParams", {})
        if "labels" in start:
            errors.append(f"{where}: rayStartParams.labels is refused; use the group's own field labels")
        if group.get("resources") and start.keys() & {"num-cpus", "num-gpus", "memory", "resources"}:
            errors.append(f"{where}: resources are set both in rayStartParams and in resources; use one")
        if group is not cluster["headGroupSpec"] and not cluster.get("enableInTreeAutoscaling"):
            low, high = group.get("minReplicas"), group.get("maxReplicas")
            if low is None or high is None or not low <= group.get("replicas", 0) <= high:
                errors.append(f"{where}: without autoscaling minReplicas <= replicas <= maxReplicas must all be set")
    names = {entry["name"] for _, pod in groups(cluster) for entry in _container(pod).get("env", [])}
    if clash := names & {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}:
        errors.append(f"env {sorted(clash)} is set by KubeRay from gcsFaultToleranceOptions and authOptions; remove it")
    return errors


def groups(cluster: Document) -> Iterator[tuple[str, Document]]:
    """Each group's name and pod template."""
    yield "headGroupSpec", cluster["headGroupSpec"]["template"]
    for group in cluster.get("workerGroupSpecs", []):
        yield group["groupName"], group["template"]


def _container(pod: Document) -> Document:
    return typing.cast(Document, pod["spec"]["containers"][0])  # KubeRay runs Ray in the first one


def pod_errors(pod: Document, documents: list[Document], readme: str, serve: Document) -> list[str]:
    """Environment, volumes and mounts of a pod template: everything named exists, and secrets come by reference."""
    container, errors = _container(pod), []
    env = {entry["name"]: entry for entry in container.get("env", [])}
    errors += [f"env {name} is missing" for name in REQUIRED_ENV if name not in env]
    for name, entry in env.items():
        if SECRET_ENV.search(name) and "value" in entry:
            errors.append(f"env {name} holds a value; a secret must come from a secretKeyRef")
        errors += secret_errors(entry, f"env {name}", readme)
    volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
    held = {d["metadata"]["name"]: d.get("data", {}) for d in documents if d["kind"] == "ConfigMap"}
    mounted = set()
    for mount in container.get("volumeMounts", []):
        volume = volumes.get(mount["name"])
        if volume is None:
            errors.append(f"volumeMount {mount['name']!r} names no volume")
        elif "configMap" in volume:
            config = volume["configMap"].get("name")
            if config not in held:
                errors.append(f"volume {mount['name']!r}: there is no ConfigMap {config!r}")
            mounted |= {f"{mount['mountPath']}/{key}" for key in held.get(config, {})}
    for application in serve.get("applications", []):
        path = application.get("args", {}).get("config")
        if path not in mounted:
            errors.append(f"the Serve config reads {path}, but the mounts hold {sorted(mounted)}")
    return errors


def secret_errors(entry: Mapping[str, Any], where: str, readme: str) -> list[str]:
    """The Secrets are made by whoever runs the cluster, so k8s/README.md must name each with its keys."""
    reference = entry.get("valueFrom", {}).get("secretKeyRef")
    if reference is None:
        return []
    missing = [word for word in (reference.get("name"), reference["key"]) if f"`{word}`" not in readme]
    return [f"{where}: {word!r} is not documented in k8s/README.md" for word in missing]


# --- Serve config --------------------------------------------------------------------------------------------------


def serve_errors(config: Any, root: Path) -> list[str]:
    """Ray's schema classes ignore fields they do not know, so those are told first, and then Ray's own errors."""
    from ray.runtime_env import RuntimeEnv
    from ray.serve.schema import ServeDeploySchema

    if not isinstance(config, dict):
        return ["must hold a Serve config"]
    errors = list(unknown_fields(config, ServeDeploySchema, ""))
    try:
        ServeDeploySchema.model_validate(config)
    except ValidationError as error:
        errors += [f"{'.'.join(map(str, e['loc']))}: {e['msg']}, got {e['input']!r}" for e in error.errors()]
        return errors
    for number, application in enumerate(config["applications"]):
        where = f"applications.{number}"
        environment = application.get("runtime_env", {})
        known = sorted(RuntimeEnv.known_fields)
        errors += [f"{where}.runtime_env: {unknown(key, known)}" for key in environment if key not in known]
        errors += import_errors(application["import_path"], where, root)
        args = application.get("args", {})
        known = ["config", "set"]  # of kto_ray.app.build
        errors += [f"{where}.args: {unknown(key, known)}" for key in args if key not in known]
    return errors


def unknown_fields(value: Any, model: Any, path: str) -> Iterator[str]:
    """Every key below `value` that the pydantic model and its nested models do not have."""
    if isinstance(value, list):
        inner = typing.get_args(model)
        for number, item in enumerate(value):
            yield from unknown_fields(item, inner[0] if inner else None, f"{path}.{number}")
    elif isinstance(value, dict):
        classes = [m for m in (model, *typing.get_args(model)) if isinstance(m, type) and issubclass(m, BaseModel)]
        for key, item in value.items() if classes else ():
            known = {name: info for cls in classes for name, info in cls.model_fields.items()}
            where = f"{path}.{key}".strip(".")
            if key not in known:
                yield f"{path.strip('.') or 'top level'}: {unknown(key, sorted(known))}"
            else:
                yield from unknown_fields(item, known[key].annotation, where)


def import_errors(path: str, where: str, root: Path) -> list[str]:
    """The import path must lead to a function of this repository. Read, not imported: that would load the engine."""
    module, _, name = path.partition(":")
    file = root / (module.replace(".", "/") + ".py")
    if not file.is_file():
        return [f"{where}.import_path {path!r}: there is no {file.relative_to(root)}"]
    functions = [node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)]
    return [] if name in functions else [f"{where}.import_path {path!r}: {module} has no function {name!r}"]


# --- kto-ray config ------------------------------------------------------------------------------------------------


def configmap_errors(document: Document, clusters: list[Document]) -> list[str]:
    data = document.get("data", {})
    errors = [f"data: {unknown(key, ['config.yaml'])}" for key in data if key != "config.yaml"]
    for text in (data[key] for key in data if key == "config.yaml"):
        try:
            config = read_config(text, [_container(pod) for c in clusters for _, pod in groups(c)])
        except ConfigError as error:
            errors += str(error).splitlines()
            continue
        for cluster in clusters:
            errors += pool_errors(config, cluster)
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


def pool_errors(config: Config, cluster: Document) -> list[str]:
    """The config must ask for pools that exist and for GPUs that they hold."""
    label = config.ray.pool_label
    if label is None:
        return ["ray.pool_label is not set, so serving and training would not keep to their pools"]
    serve, train = config.serve, config.train
    wanted = {
        "serve": (serve.device, serve.replicas * serve.tensor_parallel_size * serve.gpus_per_worker),
        "train": (train.device, train.workers * train.gpus_per_worker),
    }
    errors = []
    for pool, (device, gpus) in wanted.items():
        members = [g for g in cluster.get("workerGroupSpecs", []) if g.get("labels", {}).get(label) == pool]
        if not members:
            errors.append(f"ray.pool_label is {label!r}, but no worker group has the label {label}: {pool}")
            continue
        held = sum(g.get("replicas", 0) * _gpus(g["template"]) for g in members)
        if device == "gpu" and held < gpus:
            errors.append(f"{pool}: the config asks for {gpus:g} GPUs, the pool {label}={pool} holds {held}")
        if device == "cpu" and held > 0:
            errors.append(f"{pool}.device is 'cpu', but the pool {label}={pool} holds {held} GPUs")
    return errors


def _gpus(pod: Document) -> int:
    return int(_container(pod).get("resources", {}).get("limits", {}).get("nvidia.com/gpu", 0))
