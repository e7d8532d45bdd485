"""What a RayService must hold beyond its schema: the rules of KubeRay's operator, the Serve config, how its pods end,
and that autoscaling could be turned on. Part of k8s_check.py."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path

import yaml
from k8s_documents import Document, environment, groups, ray_container
from k8s_pods import head_pod, ray_pods
from k8s_ready import DEFAULT_GRACE_S, ready_errors
from k8s_references import Around, mounted_config_errors, secret_errors, spec_errors
from k8s_serve import serve_errors, without_replicas

from kto_ray.config.serving import ServeSection

NAME_LIMIT = 47  # beyond, KubeRay's generated names would not fit
REQUIRED_ENV = ("KTO_RAY__STORE_URL", "KTO_RAY__SALT")
SET_BY_KUBERAY = {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}
DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
LONGEST_ANSWER_S = ServeSection().grace_s  # no config of ours changes it
SLACK_S = 10  # between the end of a drain and SIGKILL


def rayservice_errors(document: Document, around: Around, serve: Document, root: Path) -> list[str]:
    name = document["metadata"].get("name", "")
    errors = []
    if not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name) or len(name) > NAME_LIMIT:
        errors.append(f"metadata.name {name!r} must be a DNS label of at most {NAME_LIMIT} characters")
    embedded = yaml.safe_load(document["spec"].get("serveConfigV2", ""))
    errors += [f"spec.serveConfigV2: {error}" for error in serve_errors(embedded, root)]
    if not errors and without_replicas(embedded) != without_replicas(serve):
        errors.append("spec.serveConfigV2 differs from deploy/serve.yaml; but for num_replicas they must be the same")
    cluster = document["spec"]["rayClusterConfig"]
    errors += operator_errors(cluster)
    for group, pod in groups(cluster):
        errors += [f"{group}: {error}" for error in _template_errors(pod, embedded, around)]
    errors += ready_errors(document)
    errors += end_errors(cluster)
    errors += autoscaling_errors(cluster)
    redis = cluster.get("gcsFaultToleranceOptions", {}).get("redisPassword", {})
    return errors + secret_errors(redis, "redis", around.readme)


def _template_errors(pod: Document, serve: Document, around: Around) -> Iterator[str]:
    env = environment(ray_container(pod))
    yield from (f"env {name} is missing" for name in REQUIRED_ENV if name not in env)
    for application in serve.get("applications", []):
        yield from mounted_config_errors(pod["spec"], application.get("args", {}).get("config"), around)


def built_errors(service: Document, around: Around) -> Iterator[tuple[str, Document, list[str]]]:
    """Each pod as KubeRay builds it: the group's name, the Pod, and what is wrong with it beyond Kubernetes' schema."""
    for group, pod in ray_pods(service).items():
        yield group, pod, spec_errors(pod["spec"], around)


def operator_errors(cluster: Document) -> list[str]:
    """What KubeRay's operator refuses although its schema allows it (ValidateRayClusterSpec), and the Ray version."""
    import ray

    errors = []
    if cluster.get("rayVersion") != ray.__version__:
        errors.append(f"rayVersion is {cluster.get('rayVersion')!r}, but the application runs on Ray {ray.__version__}")
    for what, each in (("num-cpus", "CPU"), ("num-gpus", "GPU")):
        if cluster["headGroupSpec"].get("rayStartParams", {}).get(what) != "0":
            errors.append(f"headGroupSpec.rayStartParams.{what} must be '0': work on the head's {each}s endangers all")
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
    names = {name for _, pod in groups(cluster) for name in environment(ray_container(pod))}
    if clash := names & SET_BY_KUBERAY:
        errors.append(f"env {sorted(clash)} is set by KubeRay from gcsFaultToleranceOptions and authOptions; remove it")
    auth = cluster.get("authOptions", {})
    if auth.get("mode") != "token" or not auth.get("secretName"):
        errors.append(
            "authOptions needs mode: token and a secretName: else Ray is open, or its token changes at upgrades"
        )
    return errors


def end_errors(cluster: Document) -> Iterator[str]:
    """How pods end: the Service forgets a pod (preStop), Ray drains it, and only then Kubernetes kills."""
    workers = cluster.get("workerGroupSpecs", [])
    serving = [group["groupName"] for group in workers if "serve" in group.get("labels", {}).values()]
    for group, pod in groups(cluster):
        container = ray_container(pod)
        told = environment(container).get(DRAIN, {}).get("value")
        if told is None:
            yield f"{group}: env {DRAIN} is missing; Ray would take 30 s"
            continue
        grace = pod["spec"].get("terminationGracePeriodSeconds", DEFAULT_GRACE_S)
        pause = _pause(container)
        if not str(told).isdecimal() or pause is None:
            hook = container.get("lifecycle", {}).get("preStop")
            yield f"{group}: {DRAIN} {told!r} and the sleep of preStop {hook} must be whole seconds without a unit"
            continue
        drain = int(told)
        if pause + drain + SLACK_S > grace:
            yield (
                f"{group}: preStop {pause} s, {DRAIN} {drain} and {SLACK_S} s to end are more than "
                f"terminationGracePeriodSeconds {grace}: SIGKILL would come in the middle"
            )
        if group in serving and drain < LONGEST_ANSWER_S:
            yield f"{group}: {DRAIN} is {drain}, and an answer may take {LONGEST_ANSWER_S:g} s; raise it"
        if group in serving and not pause:
            yield f"{group}: lifecycle.preStop does not sleep: chat would still be sent to a pod that drains"
        if group == "headGroupSpec" and drain:
            yield f"{group}: {DRAIN} is {drain}; the head answers nobody, and its restart should not wait: use 0"


def _pause(container: Document) -> int | None:
    """Seconds that preStop sleeps; 0 where it does not, None where it says so in another way than in whole seconds."""
    hook = container.get("lifecycle", {}).get("preStop", {})
    if "sleep" in hook:
        return int(hook["sleep"]["seconds"])
    program, *words = hook.get("exec", {}).get("command", []) or [""]
    if program != "sleep":
        return 0
    return int(words[0]) if len(words) == 1 and words[0].isdecimal() else None


def autoscaling_errors(cluster: Document) -> Iterator[str]:
    """Autoscaling is off, and nothing here may break once it is on: the sidecar shares Ray's files and has a token."""
    scaled = copy.deepcopy(cluster) | {"enableInTreeAutoscaling": True}
    spec = head_pod(scaled)["spec"]
    folders = [{m["mountPath"]: m["name"] for m in c["volumeMounts"]}.get("/tmp/ray") for c in spec["containers"]]
    if len(set(folders)) > 1:
        yield (
            f"headGroupSpec: the volume at /tmp/ray is {folders[0]!r}, and KubeRay gives the autoscaler's sidecar "
            f"{folders[1]!r}; name it so"
        )
    if spec.get("automountServiceAccountToken") is not True:
        yield "headGroupSpec: automountServiceAccountToken must be true: the autoscaler's sidecar asks for pods with it"
