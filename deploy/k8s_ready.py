"""What keeps chat where it is answered: readiness, the Service without the head, the head's state, time for an old
cluster to end, and a budget that a drain can meet. Part of k8s_check.py."""

from __future__ import annotations

import math
from collections.abc import Iterator

import yaml
from k8s_documents import Document, clusters_of, ray_container

HEALTH = "/-/healthz"  # of Serve's proxy, which a node has once a replica is on it
SERVE_PORT = 8000  # Serve's own default
DEFAULT_DELAY_S = 60  # KubeRay's, of rayClusterDeletionDelaySeconds
DEFAULT_GRACE_S = 30  # Kubernetes'


def ready_errors(service: Document) -> Iterator[str]:
    """Of a RayService."""
    spec, cluster = service["spec"], service["spec"]["rayClusterConfig"]
    serve = yaml.safe_load(spec.get("serveConfigV2", "")) or {}
    port = serve.get("http_options", {}).get("port", SERVE_PORT)
    for group in cluster.get("workerGroupSpecs", []):
        yield from _probe_errors(group, port)
    if spec.get("excludeHeadPodFromServeSvc") is not True:
        yield "spec.excludeHeadPodFromServeSvc must be true: else chat is sent to the head, and fails while it is away"
    if spec.get("upgradeStrategy", {}).get("type", "NewCluster") == "None":
        return
    if "gcsFaultToleranceOptions" not in cluster:
        yield "gcsFaultToleranceOptions is missing: a head that restarts would forget the cluster, and all pods with it"
    delay, grace = spec.get("rayClusterDeletionDelaySeconds", DEFAULT_DELAY_S), longest_grace(cluster)
    if delay < grace:
        yield (
            f"spec.rayClusterDeletionDelaySeconds is {delay}, and serving pods may take {grace} s to end "
            f"(terminationGracePeriodSeconds): an upgrade would cut answers off; raise it to {grace} or more"
        )


def _probe_errors(group: Document, port: int) -> Iterator[str]:
    container = ray_container(group["template"])
    names = {entry.get("name"): entry["containerPort"] for entry in container.get("ports", [])}
    probe = container.get("readinessProbe", {}).get("httpGet", {})
    asked = probe.get("port")
    if (probe.get("path"), names.get(asked, asked)) != (HEALTH, port):
        yield (
            f"{group['groupName']}: readinessProbe asks {probe.get('path')!r} on port {asked!r}, and must ask {HEALTH} "
            f"on {port}: only readiness keeps chat away from a node without a Serve proxy"
        )


def longest_grace(cluster: Document) -> int:
    """Seconds that a serving pod may take to end; of all pods, where no pool is for serving alone."""
    workers = cluster.get("workerGroupSpecs", [])
    serving = [group for group in workers if "serve" in group.get("labels", {}).values()] or workers
    graces = [g["template"]["spec"].get("terminationGracePeriodSeconds", DEFAULT_GRACE_S) for g in serving]
    return max(graces, default=DEFAULT_GRACE_S)


def budget_errors(budget: Document, documents: list[Document]) -> Iterator[str]:
    """A budget of all the pods that there are lets none of them go."""
    wanted, selector = budget.get("minAvailable"), budget.get("selector", {}).get("matchLabels", {})
    pods = sum(
        group.get("replicas", 0)
        for cluster in clusters_of(documents)
        for group in cluster.get("workerGroupSpecs", [])
        if selector.items()
        <= (group["template"].get("metadata", {}).get("labels", {}) | group.get("labels", {})).items()
    )
    if wanted is None or not pods:
        return
    least = math.ceil(int(wanted.removesuffix("%")) * pods / 100) if isinstance(wanted, str) else wanted
    if least >= pods:
        yield f"spec.minAvailable is {wanted!r} of {pods} pods, so no node could be drained; lower it, or remove it"


def migrate_errors(job: Document) -> Iterator[str]:
    """The Job does what it is named after, with the role that may."""
    container = ray_container(job["spec"]["template"])
    command = [*container.get("command", []), *container.get("args", [])]
    if command[:2] != ["kto-ray", "migrate"]:
        yield f"command is {command}, and must begin with kto-ray migrate: the pods wait for the schema that it makes"
    urls = [entry for entry in container.get("env", []) if entry["name"] == "KTO_RAY__STORE_URL"]
    keys = [entry.get("valueFrom", {}).get("secretKeyRef", {}).get("key") for entry in urls]
    if keys != ["migrate-url"]:
        yield (
            f"env KTO_RAY__STORE_URL is of the key {keys}, and must be of migrate-url: the service's role may "
            "change no tables"
        )
