"""The manifests hold, and `make k8s-check` sees what would break them: each test breaks a copy of the real tree."""

from __future__ import annotations

import sys

import k8s_check
import pytest
import yaml

from kto_ray.config import load_config
from tests.support.manifests import ROOT, SCHEMAS, Tree

BASE = "k8s/base"
RAYSERVICE, CONFIG, SERVE = "k8s/base/rayservice.yaml", "k8s/base/config.yaml", "deploy/serve.yaml"
BUDGET, NETWORK, MIGRATE = "k8s/base/disruption.yaml", "k8s/base/network.yaml", "k8s/base/migrate.yaml"
ACCOUNT, NAMESPACE, README = "k8s/base/serviceaccount.yaml", "k8s/namespace.yaml", "k8s/README.md"
CPU, ONE_GPU, CACHE = "k8s/overlays/cpu", "k8s/overlays/single-gpu", "k8s/components/model-cache"
DOCKERFILE, COMPOSE = "deploy/Dockerfile", "deploy/compose.yaml"

SHAPE = {
    "RayService field": (RAYSERVICE, "workerGroupSpecs:", "workerGroupSpec:", "did you mean 'workerGroupSpecs'?"),
    "RayService top level": (RAYSERVICE, "\nspec:\n", "\nspce:\n", "did you mean 'spec'?"),
    "pod field": (RAYSERVICE, "volumeMounts: *mounts", "volumeMount: *mounts", "did you mean 'volumeMounts'?"),
    "quantity": (RAYSERVICE, "memory: 48Gi", "memory: 48Gib", "does not match"),
    "budget field": (BUDGET, "minAvailable:", "minAvailible:", "did you mean 'minAvailable'?"),
    "network field": (NETWORK, "policyTypes:", "policyType:", "did you mean 'policyTypes'?"),
    "Job field": (MIGRATE, "backoffLimit:", "backofLimit:", "did you mean 'backoffLimit'?"),
    "account field": (ACCOUNT, "automountServiceAccountToken:", "automountToken:", "does not exist"),
    "namespace field": (NAMESPACE, "  labels:", "  lables:", "did you mean 'labels'?"),
    "claim field": (f"{CACHE}/claim.yaml", "accessModes:", "accessMode:", "did you mean 'accessModes'?"),
    "no such kind": (BUDGET, "policy/v1\n", "policy/v2\n", "no kind 'PodDisruptionBudget' in 'policy/v2'"),
    "values of a Secret": (NETWORK, "kind: NetworkPolicy", "kind: Secret", "must not be in the repo"),
    "name too long": (RAYSERVICE, "name: kto-ray\n", f"name: {'k' * 48}\n", "at most 47 characters"),
}
SERVING = {
    "serve config field": (RAYSERVICE, "  route_prefix: /", "  route_prefx: /", "did you mean 'route_prefix'?"),
    "serve config value": (RAYSERVICE, "      port: 8000\n    logging", "      port: web\n    logging", "got 'web'"),
    "serve copies drift": (SERVE, 'REVISION: "1"', 'REVISION: "2"', "differs from deploy/serve.yaml"),
    "overlay drifts": (f"{CPU}/rayservice.yaml", 'REVISION: "1"', 'REVISION: "2"', "differs from deploy/serve.yaml"),
    "import path": (SERVE, "app:build", "app:biuld", "has no function 'biuld'"),
    "builder argument": (SERVE, "      config: /etc", "      confg: /etc", "did you mean 'config'?"),
    "no such deployment": (SERVE, "name: Policy", "name: Polcy", "there is no deployment 'Polcy'"),
    "edit that restarts": (
        SERVE,
        "- name: Policy",
        "- max_replicas_per_node: 1\n        name: Policy",
        "restarts every",
    ),
    "actor options": (SERVE, "- name: Policy", "- ray_actor_options: {}\n        name: Policy", "restarts every"),
    "another policy": (SERVE, "num_replicas: 2", "autoscaling_config: {policy: {}}", "_config.policy restarts every"),
    "kto-ray field": (CONFIG, "max_num_seqs:", "max_num_seq:", "did you mean 'max_num_seqs'?"),
    "kto-ray value": (CONFIG, "max_num_seqs: 128", "max_num_seqs: 0", "serve.max_num_seqs"),
    "kto-ray copies drift": (CONFIG, "max_num_seqs: 128", "max_num_seqs: 64", "differs from configs/production.yaml"),
    "sized twice": (CONFIG, "  max_num_seqs", "  replicas: 2\n  max_num_seqs", "num_replicas of Policy decides"),
    "more policies than places": (RAYSERVICE, "num_replicas: 2", "num_replicas: 3", "has room for 2"),
    "an engine over pods": (CONFIG, "  max_num_seqs", "  tensor_parallel_size: 2\n  max_num_seqs", "no single pod"),
    "training over pods": (CONFIG, "cpus_per_worker: 4", "cpus_per_worker: 9", "fit no single pod of the pool"),
    "no such pool": (RAYSERVICE, "kto-ray/pool: train", "kto-ray/pool: trian", "no worker group has the label"),
    "one pool of several groups": (CONFIG, "  pool_label: kto-ray/pool\n", "", "ray.pool_label is not set"),
    "halves of more than one": (f"{ONE_GPU}/config.yaml", "worker: 0.5", "worker: 0.6", "has room for 0"),
    "a CPU on GPUs": (f"{CPU}/rayservice.yaml", 'cpu: "4", memory', 'nvidia.com/gpu: "1", memory', "holds 1 GPUs"),
}
NAMES = {
    "store URL not given": (RAYSERVICE, "KTO_RAY__STORE_URL", "KTO_RAY_STORE_URL", "KTO_RAY__STORE_URL is missing"),
    "secret in clear": (
        RAYSERVICE,
        "valueFrom:\n                    secretKeyRef: {name: kto-ray-secrets, key: salt}",
        "value: pepper",
        "a secret must come from a secretKeyRef",
    ),
    "undocumented secret": (RAYSERVICE, "kto-ray-secrets", "kto-ray-secret", "'kto-ray-secret' is not documented"),
    "undocumented token": (RAYSERVICE, "secretName: kto-ray-auth", "secretName: kto-a", "'kto-a' is not documented"),
    "a token a cluster": (RAYSERVICE, "      secretName: kto-ray-auth", "", "needs mode: token and a secretName"),
    "no such ConfigMap": (RAYSERVICE, "name: kto-ray-config", "name: kto-ray-conf", "no ConfigMap 'kto-ray-conf'"),
    "no such account": (RAYSERVICE, "AccountName: kto-ray", "AccountName: kto", "there is no such ServiceAccount"),
    "no such claim": (f"{CACHE}/claim.yaml", "name: kto-ray-model", "name: kto-model", "no PersistentVolumeClaim"),
    "no such volume": (RAYSERVICE, "{name: spool, mount", "{name: spol, mount", "volumeMount 'spol' names no volume"),
    "config mounted elsewhere": (RAYSERVICE, "mountPath: /etc/kto-ray,", "mountPath: /etc/kto,", "the mounts hold"),
    "env twice": (RAYSERVICE, "name: AWS_REGION", "name: AWS_DEFAULT_REGION", "AWS_DEFAULT_REGION is set twice"),
    "budget of nobody": (BUDGET, "pool: serve", "pool: server", "matches no pod"),
    "policy for nobody": (NETWORK, "of: kto-ray\n  policy", "of: kto\n  policy", "matches no pod"),
    "schema of before": (MIGRATE, "migrate-0010", "migrate-0009", "must be 'kto-ray-migrate-0010'"),
    "a wait for another Job": (README, "job/kto-ray-migrate-0010", "job/kto-ray-migrate-0009", "does not wait for job"),
    "another program migrates": (MIGRATE, "image: kto-ray:gpu", "image: kto-ray:old", "all must run the same"),
    "another salt": (MIGRATE, "key: salt", "key: store-url", "KTO_RAY__SALT differs"),
    "another config": (MIGRATE, "config, /etc/kto-ray/", "config, /etc/kto/", "must read /etc/kto-ray/config.yaml"),
    "model of another commit": (f"{BASE}/kustomization.yaml", '"a09a', '"b09a', "revision in config.yaml begins 'a09a"),
    "README": (README, "in place | in place | replicas come", "nothing | in place | replicas come", "table of edits"),
}
RUNNING = {
    "work on the head": (RAYSERVICE, 'num-cpus: "0"', 'num-cpus: "4"', "num-cpus must be '0'"),
    "GPUs on the head": (RAYSERVICE, 'num-gpus: "0"', 'num-gpus: "1"', "num-gpus must be '0'"),
    "another Ray": (RAYSERVICE, "rayVersion: 2.60.0", "rayVersion: 2.59.0", "rayVersion is '2.59.0'"),
    "KubeRay's to set": (RAYSERVICE, "name: HF_TOKEN", "name: RAY_AUTH_TOKEN", "is set by KubeRay"),
    "killed in the middle": (RAYSERVICE, '[sleep, "10"]', '[sleep, "21"]', "SIGKILL would come in the middle"),
    "sent to who drains": (RAYSERVICE, '[sleep, "10"]', "[sync]", "does not sleep"),
    "minutes of sleep": (RAYSERVICE, '[sleep, "10"]', '[sleep, "10m"]', "must be whole seconds without a unit"),
    "a sleep of nothing": (RAYSERVICE, '[sleep, "10"]', "[sleep]", "must be whole seconds without a unit"),
    "drain in words": (RAYSERVICE, 'value: "150"', 'value: "150s"', "must be whole seconds without a unit"),
    "drain of half an answer": (RAYSERVICE, 'value: "150"', 'value: "60"', "an answer may take 120 s"),
    "drain of Ray's": (RAYSERVICE, 'TIMEOUT_S, value: "20"', 'TIMEOUT, value: "20"', "Ray would take 30 s"),
    "a head that waits": (RAYSERVICE, 'TIMEOUT_S, value: "0"', 'TIMEOUT_S, value: "5"', "its restart should not wait"),
    "a sidecar without token": (RAYSERVICE, "Token: true", "Token: false", "AccountToken must be true"),
    "a sidecar without logs": (RAYSERVICE, "ray-logs", "ray", "gives the autoscaler's sidecar 'ray-logs'"),
    "a disk without end": (RAYSERVICE, "{sizeLimit: 40Gi}", "{}", "has no sizeLimit"),
    "a disk too small": (RAYSERVICE, "storage: 72Gi", "storage: 64Gi", "ephemeral-storage is 64Gi"),
    "a Job for good": (MIGRATE, "  ttlSecondsAfterFinished: 300\n", "", "another image of the same name"),
    "a Job that gives up": (MIGRATE, "restartPolicy: OnFailure", "restartPolicy: Never", "use OnFailure"),
    "a budget that blocks": (BUDGET, "AlwaysAllow", "IfHealthyBudget", "would block a drain"),
    "a budget of owners": (BUDGET, "minAvailable: 1", "maxUnavailable: 1", "which a RayCluster lacks"),
    "capabilities": (RAYSERVICE, "drop: [ALL]", "drop: [NET_RAW]", "container 'wait-gcs-ready': securityContext.cap"),
    "capabilities of a Job": (MIGRATE, "drop: [ALL]", "drop: [NET_RAW]", "capabilities.drop must hold ALL"),
    "system calls": (RAYSERVICE, "type: RuntimeDefault", "type: Unconfined", "seccompProfile.type is 'Unconfined'"),
    "the node's files": (RAYSERVICE, "emptyDir: {sizeLimit: 5Gi}", "hostPath: {path: /}", "'spool' is a hostPath"),
    "the autoscaler's context": (
        RAYSERVICE,
        "    rayVersion:",
        "    enableInTreeAutoscaling: true\n    rayVersion:",
        "container 'autoscaler': securityContext",
    ),
}
IMAGE = {
    "a cache off the volume": (DOCKERFILE, "=/var/cache/kto-ray/vllm", "=/opt/vllm", "VLLM_CACHE_ROOT is /opt/vllm"),
    "a volume elsewhere": (RAYSERVICE, "mountPath: /var/cache/kto-ray", "mountPath: /cache", "HF_HOME is /var/cache"),
    "a model off the volume": (
        f"{CACHE}/rayservice.yaml",
        "value: /var/cache/kto-ray-model",
        "value: /m",
        "CACHE is /m",
    ),
    "a cache of its own": (DOCKERFILE, "TRITON_CACHE_DIR", "TRITON_CACHE", "ENV TRITON_CACHE_DIR is missing"),
    "GPUs for everybody": (DOCKERFILE, "HOME=", "NVIDIA_VISIBLE_DEVICES=all HOME=", "show GPUs that nobody asked for"),
    "hadolint": (DOCKERFILE, "--no-install-recommends ", "", "DL3015"),
    "compose kills": (COMPOSE, "stop_grace_period: 180s", "stop_grace_period: 10s", "answers need 180s"),
    "compose leaves zombies": (COMPOSE, "init: true", "init: false", "app.init must be true"),
    "compose stays down": (COMPOSE, "restart: unless-stopped", "x-none: 1", "app.restart is missing"),
    "compose's password": (COMPOSE, "//kto@data", "//kto:${PASSWORD}@data", "holds the password, unescaped"),
    "compose's caches": (COMPOSE, "cache:/var/cache/kto-ray", "cache:/cache", "KTO_RAY_CACHE is /var/cache"),
}
BREAKS = {**SHAPE, **SERVING, **NAMES, **RUNNING, **IMAGE}


def test_no_two_breaks_have_one_name() -> None:
    assert len(BREAKS) == sum(map(len, (SHAPE, SERVING, NAMES, RUNNING, IMAGE)))


@pytest.mark.parametrize("name", BREAKS)
def test_a_break_in_a_copy_is_told(tree: Tree, name: str) -> None:
    file, old, new, told = BREAKS[name]
    tree.edit(file, old, new)
    found = tree.errors(_reach(file))
    assert any(told in error for error in found), found


def _reach(file: str) -> tuple[str, ...]:
    """The targets that have to be rendered to see an edit of a file."""
    if file == README:
        return (BASE, ONE_GPU)
    return next(((target,) for target in (CPU, ONE_GPU, CACHE) if file.startswith(target)), (BASE,))


def test_the_real_tree_is_valid(tree: Tree) -> None:
    report = k8s_check.check_tree(ROOT, SCHEMAS)
    assert report.errors == []
    for target in (BASE, CPU, ONE_GPU, CACHE):
        for document in ("RayService kto-ray", "ConfigMap kto-ray-config", "Job kto-ray-migrate-0010"):
            assert f"ok    {target}  {document}" in report.lines
        assert f"ok    {target}  Pod of serve, as KubeRay builds it" in report.lines


def test_a_merge_patch_on_the_rayservice_is_refused(tree: Tree) -> None:
    (tree.root / CPU / "rayservice.yaml").write_text("kind: RayService\nmetadata: {name: kto-ray}\nspec: {}\n")
    assert any("must be a JSON 6902 list" in error for error in tree.errors((CPU,)))


@pytest.mark.parametrize("target", [CPU, ONE_GPU, CACHE])
def test_a_moved_worker_group_fails_the_patch_guard(tree: Tree, target: str) -> None:
    tree.edit(RAYSERVICE, "groupName: train", "groupName: learn")
    assert any(target in error and "kubectl kustomize failed" in error for error in tree.errors((target,)))


def test_a_new_migration_needs_a_job_of_its_name(tree: Tree) -> None:
    versions = tree.root / "kto_ray/store/migrations/versions"
    (versions / "0011_next.py").write_text('revision = "0011"\ndown_revision = "0010"\n')
    assert any("must be 'kto-ray-migrate-0011'" in error for error in tree.errors((BASE,)))


def test_autoscaling_can_be_turned_on(tree: Tree) -> None:
    """The head's token and the shared folder are there; only the sidecar's own context has to be given with it."""
    context = "securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}"
    on = f"    enableInTreeAutoscaling: true\n    autoscalerOptions: {{version: v2, {context}}}\n    rayVersion:"
    tree.edit(RAYSERVICE, "    rayVersion:", on)
    assert tree.errors((BASE,)) == []


def test_the_command_exits_1_and_says_why(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["k8s_check.py", "--root", str(tree.root), *arguments])
        return int(k8s_check.main())

    assert run("--schemas", str(SCHEMAS)) == 0
    assert run("--schemas", str(tree.root / "nowhere")) == 1
    assert "no KubeRay JSON Schemas in" in capsys.readouterr().err
    tree.edit(CONFIG, "embedded: false", "embeded: false")
    assert run("--schemas", str(SCHEMAS)) == 1
    assert "did you mean 'embedded'?" in capsys.readouterr().out
    monkeypatch.setenv("PATH", str(tree.root))
    assert run("--schemas", str(SCHEMAS)) == 1
    assert "kubectl is not on the PATH" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["local", "single-gpu", "production"])
def test_the_shipped_configs_are_valid_and_hold_only_differences(name: str) -> None:
    path = ROOT / "configs" / f"{name}.yaml"
    # What the pods get from a Secret.
    load_config(path, ("store_url=postgresql+psycopg://database/kto", "salt=secret") if name == "production" else ())
    default = load_config().model_dump(mode="json")
    assert _repeated(yaml.safe_load(path.read_text()), default, "") == []  # equal to the default: leave it out


def _repeated(tree: dict[str, object], default: dict[str, object], prefix: str) -> list[str]:
    found: list[str] = []
    for key, value in tree.items():
        known = default[key]
        if isinstance(value, dict) and isinstance(known, dict) and key != "engine":
            found += _repeated(value, known, f"{prefix}{key}.")
        elif value == known:
            found.append(prefix + key)
    return found
