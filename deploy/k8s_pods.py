"""The pods of a RayService as KubeRay 1.7 builds them, so that what Kubernetes gets can be checked, not only what we
wrote. Part of k8s_check.py.

After DefaultHeadPodTemplate, DefaultWorkerPodTemplate and BuildPod of ray-operator/controllers/ray/common/pod.go at
v1.7.0, with the operator's default settings (init container and probes injected, no login shell), token authentication
and Redis. Probes are given in all of our groups, so that the operator adds none.
"""

from __future__ import annotations

import copy
import math
import re

from k8s_documents import Document, environment, is_gpu, number, ray_container

CLUSTER, NAMESPACE = "kto-ray-abcde", "kto"  # KubeRay appends five letters to the RayService's name
HEAD = f"{CLUSTER}-head-svc.{NAMESPACE}.svc.cluster.local"
GCS_PORT = "6379"
BASH = ["/bin/bash", "-c", "--"]
WAIT = f"""
SECONDS=0
while true; do
  if ray health-check --address {HEAD}:{GCS_PORT}; then
    break
  fi
  sleep 5
done
"""
AUTOSCALER = "ray kuberay-autoscaler --cluster-name $(RAY_CLUSTER_NAME) --cluster-namespace $(RAY_CLUSTER_NAMESPACE)"
FIXED_LABELS = ("ray.io/node-type", "ray.io/group", "ray.io/cluster")  # which a template cannot override
VALUED_FLAGS = ("log-color", "include-dashboard", "include-log-monitor")  # of `ray start`, which take true and false


def ray_pods(service: Document) -> dict[str, Document]:
    """The head's pod and one of each worker group, by group name."""
    cluster = service["spec"]["rayClusterConfig"]
    pods = {"headGroupSpec": head_pod(cluster)}
    return pods | {group["groupName"]: worker_pod(cluster, group) for group in cluster.get("workerGroupSpecs", [])}


def head_pod(cluster: Document) -> Document:
    group = copy.deepcopy(cluster["headGroupSpec"])
    pod, params = _pod(group, "head"), dict(group.get("rayStartParams", {}))
    _label_params(params, group)
    params.setdefault("dashboard-host", "0.0.0.0")
    container = ray_container(pod)
    container.setdefault("env", [])
    if cluster.get("enableInTreeAutoscaling"):
        params["no-monitor"] = "true"
        _add_autoscaler(pod, cluster)
    if (redis := cluster.get("gcsFaultToleranceOptions")) is not None:
        params |= {"redis-password": "$REDIS_PASSWORD"} if "redisPassword" in redis else {}
        container["env"] += _redis_env(redis)
    pod["metadata"]["labels"]["ray.io/serve"] = "false"
    _finish(pod, params, cluster, "head")
    return pod


def worker_pod(cluster: Document, group: Document) -> Document:
    group = copy.deepcopy(group)
    pod, params = _pod(group, "worker"), dict(group.get("rayStartParams", {}))
    _label_params(params, group)
    params.setdefault("address", f"{HEAD}:{GCS_PORT}")
    container = ray_container(pod)
    container.setdefault("env", [])
    pod["spec"].setdefault("initContainers", []).append(_wait_gcs_ready(container))
    if cluster.get("gcsFaultToleranceOptions") is not None:
        _default_env(container, "RAY_gcs_rpc_server_reconnect_timeout_s", "600")
    if cluster.get("enableInTreeAutoscaling") and cluster.get("autoscalerOptions", {}).get("version") == "v2":
        pod["spec"]["restartPolicy"] = "Never"
    pod["metadata"]["labels"]["ray.io/serve"] = "true"  # only the readiness probe keeps chat away from a worker
    _finish(pod, params, cluster, "worker")
    return pod


def start_command(kind: str, params: dict[str, str], resources: Document) -> str:
    """The line that starts Ray, with what the resources say of it where `params` do not."""
    limits, params = resources.get("limits", {}), dict(params)
    cpus = number(limits.get("cpu")) or number(resources.get("requests", {}).get("cpu"))
    if cpus:
        params.setdefault("num-cpus", str(math.ceil(cpus)))
    if "memory" in limits:
        params.setdefault("memory", str(math.ceil(number(limits["memory"]))))
    for name in sorted(limits):
        if is_gpu(name) and number(limits[name]):
            params.setdefault("num-gpus", str(math.ceil(number(limits[name]))))
    flags = "".join(_flag(name, params[name]) for name in sorted(params))
    return f"ray start {'--head ' if kind == 'head' else ''}{flags}"


def _flag(name: str, value: str) -> str:
    if value.lower() not in ("true", "false") or name in VALUED_FLAGS:
        return f" --{name}={value} "
    return f" --{name} " if value.lower() == "true" else ""


def _pod(group: Document, kind: str) -> Document:
    """The template as a Pod, with KubeRay's labels and the group's."""
    template = group["template"]
    own = {
        "ray.io/is-ray-node": "yes",
        "ray.io/cluster": CLUSTER,
        "ray.io/node-type": kind,
        "ray.io/group": group.get("groupName", "headgroup"),
        "ray.io/identifier": f"{CLUSTER}-{kind}",
        "app.kubernetes.io/name": "kuberay",
        "app.kubernetes.io/created-by": "kuberay-operator",
    }
    given = template.get("metadata", {}).get("labels", {}) | group.get("labels", {})
    labels = own | {key: value for key, value in given.items() if key not in FIXED_LABELS}
    metadata = template.get("metadata", {}) | {"generateName": f"{CLUSTER}-{kind}-", "namespace": NAMESPACE}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata | {"labels": labels}, "spec": template["spec"]}


def _label_params(params: dict[str, str], group: Document) -> None:
    if labels := group.get("labels"):
        params["labels"] = ",".join(f"{key}={labels[key]}" for key in sorted(labels))


def _finish(pod: Document, params: dict[str, str], cluster: Document, kind: str) -> None:
    """What BuildPod does to both kinds: authentication, shared memory, the command, environment."""
    container = ray_container(pod)
    params |= {"block": "true"}
    params.setdefault("metrics-export-port", "8080")
    params.setdefault("dashboard-agent-listen-port", "52365")
    if cluster.get("authOptions", {}).get("mode") == "token":
        named = [entry for entry in pod["spec"].get("initContainers", []) if entry["name"] == "wait-gcs-ready"]
        sidecars = [entry for entry in pod["spec"]["containers"] if entry["name"] == "autoscaler"]
        for each in (container, *named, *sidecars):
            each["env"] = [*each.get("env", []), *_token_env(cluster, each)]
    if "plasma-directory" not in params:
        size = next(iter(v["memory"] for v in _resources(container) if "memory" in v), None)
        limit = {} if size is None else {"sizeLimit": size}
        _empty_dir(pod, container, "shared-mem", "/dev/shm", {"medium": "Memory", **limit})
    for sidecar in (entry for entry in pod["spec"]["containers"][1:] if entry["name"] == "autoscaler"):
        _empty_dir(pod, container, "ray-logs", "/tmp/ray", {})
        _empty_dir(pod, sidecar, "ray-logs", "/tmp/ray", {})
    command = start_command(kind, params, container.get("resources", {}))
    container["command"] = BASH
    container["args"] = [f"ulimit -n ${{RAY_START_ULIMIT_OPEN_FILES:-65536}}; {command}"]
    for entry in pod["spec"].get("initContainers", []):
        entry["env"] = [*entry.get("env", []), *_address_env(HEAD)]
    _set_env(container, kind, command)


def _resources(container: Document) -> tuple[Document, Document]:
    resources = container.get("resources", {})
    return resources.get("limits", {}), resources.get("requests", {})


def _empty_dir(pod: Document, container: Document, name: str, path: str, source: Document) -> None:
    mounts = container.setdefault("volumeMounts", [])
    if any(mount["mountPath"] == path for mount in mounts):
        return
    volumes = pod["spec"].setdefault("volumes", [])
    if all(volume["name"] != name for volume in volumes):
        volumes.append({"name": name, "emptyDir": source})
    mounts.append({"name": name, "mountPath": path})


def _wait_gcs_ready(container: Document) -> Document:
    few = {"cpu": "200m", "memory": "256Mi"}  # fixed in the operator, and little for `ray health-check`
    copied = ("image", "imagePullPolicy", "securityContext", "volumeMounts", "env")
    taken = {key: copy.deepcopy(container[key]) for key in copied if key in container}
    resources = {"limits": few, "requests": dict(few)}
    return {"name": "wait-gcs-ready", "command": BASH, "args": [WAIT], "resources": resources, **taken}


def _add_autoscaler(pod: Document, cluster: Document) -> None:
    """The sidecar has no security context but the one that autoscalerOptions gives."""
    options = cluster.get("autoscalerOptions", {})
    pod["spec"].setdefault("serviceAccountName", CLUSTER)
    few = {"cpu": "500m", "memory": "512Mi"}
    sidecar = {
        "name": "autoscaler",
        "image": options.get("image", ray_container(pod)["image"]),
        "imagePullPolicy": options.get("imagePullPolicy", "IfNotPresent"),
        "env": [
            _field("RAY_CLUSTER_NAME", "metadata.labels['ray.io/cluster']"),
            _field("RAY_CLUSTER_NAMESPACE", "metadata.namespace"),
            _field("RAY_HEAD_POD_NAME", "metadata.name"),
            {"name": "KUBERAY_CRD_VER", "value": "v1"},
            {"name": "KUBERAY_GEN_AUTOSCALER_START_CMD", "value": AUTOSCALER},
            *options.get("env", []),
        ],
        "command": options.get("command", BASH),
        "args": options.get("args", [AUTOSCALER]),
        "resources": options.get("resources", {"limits": few, "requests": dict(few)}),
    }
    same = ("envFrom", "volumeMounts", "securityContext")
    pod["spec"]["containers"].append(sidecar | {key: copy.deepcopy(options[key]) for key in same if key in options})
    v2 = options.get("version") == "v2"
    ray_container(pod)["env"].append({"name": "RAY_enable_autoscaler_v2", "value": str(v2).lower()})
    if v2:
        pod["spec"]["restartPolicy"] = "Never"


def _redis_env(options: Document) -> list[Document]:
    env = [
        {"name": "RAY_external_storage_namespace", "value": options.get("externalStorageNamespace", "uid")},
        {"name": "RAY_REDIS_ADDRESS", "value": options["redisAddress"]},
    ]
    return env + ([{"name": "REDIS_PASSWORD", **options["redisPassword"]}] if "redisPassword" in options else [])


def _token_env(cluster: Document, container: Document) -> list[Document]:
    secret = cluster["authOptions"].get("secretName") or CLUSTER
    token = {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": {"name": secret, "key": "auth_token"}}}
    return [entry for entry in ({"name": "RAY_AUTH_MODE", "value": "token"}, token) if _is_new(container, entry)]


def _is_new(container: Document, entry: Document) -> bool:
    return entry["name"] not in environment(container)


def _default_env(container: Document, name: str, value: str) -> None:
    if name not in environment(container):
        container["env"].append({"name": name, "value": value})


def _field(name: str, path: str) -> Document:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def _address_env(host: str) -> list[Document]:
    return [{"name": "FQ_RAY_IP", "value": host}, {"name": "RAY_IP", "value": re.sub(r"\..*", "", host)}]


def _set_env(container: Document, kind: str, command: str) -> None:
    """What KubeRay tells a Ray container, appended to what the template says."""
    env = container["env"]
    host = "127.0.0.1" if kind == "head" else HEAD
    env += [] if kind == "head" else _address_env(HEAD)
    env.append(_field("RAY_CLUSTER_NAME", "metadata.labels['ray.io/cluster']"))
    env.append(_field("RAY_CLUSTER_NAMESPACE", "metadata.namespace"))
    env.append(_field("RAY_CLOUD_INSTANCE_ID", "metadata.name"))
    env.append(_field("RAY_NODE_TYPE_NAME", "metadata.labels['ray.io/group']"))
    env.append({"name": "KUBERAY_GEN_RAY_START_CMD", "value": command})
    defaults = {
        "RAY_PORT": GCS_PORT,
        "RAY_timeout_ms_task_wait_for_death_info": "0",
        "RAY_gcs_server_request_timeout_seconds": "5",
        "RAY_SERVE_KV_TIMEOUT_S": "5",
        "RAY_ADDRESS": f"{host}:{GCS_PORT}",
        "RAY_USAGE_STATS_KUBERAY_IN_USE": "1",
        "RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE": "1",
    }
    for name, value in defaults.items():
        _default_env(container, name, value)
    if kind == "head":
        env.append({"name": "RAY_USAGE_STATS_EXTRA_TAGS", "value": "kuberay_version=v1.7.0;kuberay_crd=RayService"})
