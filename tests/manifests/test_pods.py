"""KubeRay's pods: what our builder makes of a group is what KubeRay's own tests and sources say."""

from __future__ import annotations

import copy

import pytest
from k8s_documents import Document, environment, number, ray_container
from k8s_plain import kubernetes_errors
from k8s_pods import head_pod, ray_pods, start_command, worker_pod

ADDRESS = "kto-ray-abcde-head-svc.kto.svc.cluster.local:6379"


@pytest.fixture
def cluster(services: dict[str, Document]) -> Document:
    spec: Document = copy.deepcopy(services["k8s/base"]["spec"]["rayClusterConfig"])
    return spec


def test_the_start_line_is_that_of_kuberays_own_tests() -> None:
    """TestBuildPod in ray-operator/controllers/ray/common/pod_test.go, v1.7.0; in the order of the flags' names."""
    common = {"block": "true", "dashboard-agent-listen-port": "52365", "metrics-export-port": "8080"}
    worker = common | {"address": "raycluster-sample-head-svc.default.svc.cluster.local:6379", "port": "6379"}
    limits = {"cpu": "1", "memory": "1Gi", "nvidia.com/gpu": "3"}
    assert " ".join(start_command("worker", worker, {"limits": limits}).split()) == (
        "ray start --address=raycluster-sample-head-svc.default.svc.cluster.local:6379 --block "
        "--dashboard-agent-listen-port=52365 --memory=1073741824 --metrics-export-port=8080 --num-cpus=1 "
        "--num-gpus=3 --port=6379"
    )
    head = common | {"dashboard-host": "0.0.0.0"}
    assert " ".join(start_command("head", head, {"limits": {"cpu": "1", "memory": "1Gi"}}).split()) == (
        "ray start --head --block --dashboard-agent-listen-port=52365 --dashboard-host=0.0.0.0 --memory=1073741824 "
        "--metrics-export-port=8080 --num-cpus=1"
    )


def test_what_the_params_say_comes_before_the_resources() -> None:
    resources = {"limits": {"cpu": "1500m", "nvidia.com/mig-2g.32gb": "1"}, "requests": {"cpu": "1"}}
    assert "--num-cpus=2 " in start_command("worker", {}, resources)  # a limit counts before a request, rounded up
    assert "--num-gpus=1 " in start_command("worker", {}, resources)
    assert "--num-cpus=0 " in start_command("worker", {"num-cpus": "0"}, resources)
    assert start_command("worker", {"no-monitor": "false", "log-color": "false"}, {}) == "ray start  --log-color=false "


def test_a_worker_is_a_target_of_the_service_whatever_its_pool(services: dict[str, Document]) -> None:
    pods = ray_pods(services["k8s/base"])
    labels = {name: pod["metadata"]["labels"] for name, pod in pods.items()}
    assert {name: each["ray.io/serve"] for name, each in labels.items()} == {
        "headGroupSpec": "false",
        "serve": "true",
        "train": "true",
    }
    assert {each["kto-ray/pool"] for each in labels.values()} == {"head", "serve", "train"}
    assert all(each["app.kubernetes.io/part-of"] == "kto-ray" for each in labels.values())
    assert labels["serve"]["ray.io/group"] == "serve"


def test_a_template_cannot_take_kuberays_labels(cluster: Document) -> None:
    group = cluster["workerGroupSpecs"][0]
    group["template"]["metadata"]["labels"] |= {"ray.io/group": "mine", "app.kubernetes.io/name": "mine"}
    labels = worker_pod(cluster, group)["metadata"]["labels"]
    assert (labels["ray.io/group"], labels["app.kubernetes.io/name"]) == ("serve", "mine")


def test_a_worker_waits_for_the_head_with_the_pods_own_rights_and_little_memory(cluster: Document) -> None:
    pod = worker_pod(cluster, cluster["workerGroupSpecs"][0])
    (wait,) = pod["spec"]["initContainers"]
    ray = ray_container(pod)
    assert wait["name"] == "wait-gcs-ready" and f"ray health-check --address {ADDRESS}" in wait["args"][0]
    assert (wait["image"], wait["securityContext"]) == (ray["image"], ray["securityContext"])
    assert number(wait["resources"]["limits"]["memory"]) == 256 * 2**20
    assert {"RAY_AUTH_TOKEN", "RAY_AUTH_MODE", "KTO_RAY__SALT", "FQ_RAY_IP"} <= environment(wait).keys()
    assert "RAY_ADDRESS" not in environment(wait)


def test_a_worker_gets_kuberays_environment_and_shared_memory(cluster: Document) -> None:
    pod = worker_pod(cluster, cluster["workerGroupSpecs"][0])
    ray, env = ray_container(pod), environment(ray_container(pod))
    assert env["RAY_ADDRESS"]["value"] == ADDRESS
    assert env["RAY_gcs_rpc_server_reconnect_timeout_s"]["value"] == "600"  # the head may be away for so long
    assert env["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "kto-ray-auth", "key": "auth_token"}
    assert {"name": "shared-mem", "emptyDir": {"medium": "Memory", "sizeLimit": "48Gi"}} in pod["spec"]["volumes"]
    assert {"name": "shared-mem", "mountPath": "/dev/shm"} in ray["volumeMounts"]
    assert ray["command"] == ["/bin/bash", "-c", "--"]
    assert ray["args"][0].startswith("ulimit -n ${RAY_START_ULIMIT_OPEN_FILES:-65536}; ray start ")
    assert "--labels=kto-ray/pool=serve " in ray["args"][0]


def test_the_head_keeps_its_state_in_redis_and_takes_no_work(cluster: Document) -> None:
    pod = head_pod(cluster)
    env, command = environment(ray_container(pod)), ray_container(pod)["args"][0]
    assert env["RAY_REDIS_ADDRESS"]["value"] == "kto-ray-redis:6379"
    assert env["REDIS_PASSWORD"]["valueFrom"]["secretKeyRef"]["name"] == "kto-ray-redis"
    assert env["RAY_ADDRESS"]["value"] == "127.0.0.1:6379"
    for flag in ("--num-cpus=0 ", "--num-gpus=0 ", "--redis-password=$REDIS_PASSWORD ", "--dashboard-host=0.0.0.0 "):
        assert flag in command
    assert "initContainers" not in pod["spec"]


def test_the_autoscaler_shares_rays_files_and_has_its_options_context(cluster: Document) -> None:
    cluster |= {"enableInTreeAutoscaling": True, "autoscalerOptions": {"version": "v2"}}
    spec = head_pod(cluster)["spec"]
    ray, sidecar = spec["containers"]
    assert "securityContext" not in sidecar  # so "restricted" would refuse the pod
    assert {"name": "ray-logs", "mountPath": "/tmp/ray"} in sidecar["volumeMounts"]
    assert {"RAY_AUTH_TOKEN", "RAY_CLUSTER_NAME"} <= environment(sidecar).keys()
    assert "--no-monitor " in ray["args"][0] and spec["restartPolicy"] == "Never"
    assert spec["serviceAccountName"] == "kto-ray"
    assert worker_pod(cluster, cluster["workerGroupSpecs"][0])["spec"]["restartPolicy"] == "Never"


def test_building_leaves_the_manifest_as_it_is(services: dict[str, Document]) -> None:
    before = copy.deepcopy(services["k8s/base"])
    ray_pods(services["k8s/base"])
    assert services["k8s/base"] == before


def test_kubernetes_schema_is_strict_on_built_pods(cluster: Document) -> None:
    pod = head_pod(cluster)
    assert kubernetes_errors(pod) == []
    pod["spec"]["containers"][0]["comand"] = []
    assert kubernetes_errors(pod) == ["spec.containers.0: field 'comand' does not exist; did you mean 'command'?"]
