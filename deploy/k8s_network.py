"""Who reaches which port of which Ray pod: all NetworkPolicies together, held to a table of callers; and what the pods
themselves must reach. Part of k8s_check.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from k8s_documents import Document, ray_container
from k8s_pods import ray_pods


@dataclass(frozen=True)
class Caller:
    """A pod that calls; `namespace` holds its namespace's labels, None is the policy's own namespace."""

    who: str
    pod: tuple[tuple[str, str], ...] = ()
    namespace: tuple[tuple[str, str], ...] | None = None


RAY = Caller("a pod of the cluster", (("app.kubernetes.io/part-of", "kto-ray"),))
CLIENT = (("kto-ray/client", "true"),)
NEAR = Caller("a client of this namespace", CLIENT)
FAR = Caller("a client of a namespace of clients", CLIENT, (("kto-ray/clients", "true"),))
OPERATOR = Caller("the KubeRay operator", (("app.kubernetes.io/component", "kuberay-operator"),), ())
MONITOR = Caller("Prometheus in a namespace for metrics", (), (("kto-ray/metrics", "true"),))
STRANGERS = (
    Caller("a pod of this namespace without a label"),
    Caller("a pod of another namespace", (), ()),
    Caller("a pod of another namespace that calls itself a client", CLIENT, ()),
    Caller("a pod of another namespace that calls itself part of kto-ray", RAY.pod, ()),
)
PORTS = (6379, 8000, 8080, 8265, 10001, 44217, 44227, 52365)
OPEN = {RAY: PORTS, NEAR: (8000,), FAR: (8000,), OPERATOR: (8000, 8265), MONITOR: (8000, 8080, 44217, 44227)}

NEEDED = {"DNS": ("UDP", 53), "PostgreSQL": ("TCP", 5432), "S3": ("TCP", 443)}  # that every Ray pod asks


def network_errors(documents: list[Document]) -> list[str]:
    """Policies add up, and a pod that none selects is open; so each Ray pod is held to the table by itself."""
    policies = [document["spec"] for document in documents if document["kind"] == "NetworkPolicy"]
    services = [document for document in documents if document["kind"] == "RayService"]
    pods = {name: pod for service in services for name, pod in ray_pods(service).items()}
    return [f"{name}: {error}" for name, pod in pods.items() for error in _pod_errors(pod, policies)]


def _pod_errors(pod: Document, policies: list[Document]) -> Iterator[str]:
    labels, names = pod["metadata"]["labels"], _port_names(pod)
    mine = [policy for policy in policies if _selects(policy.get("podSelector", {}), labels)]
    guards = [policy for policy in mine if "Ingress" in policy_types(policy)]
    if not guards:
        yield "no NetworkPolicy with policyTypes Ingress selects it, so everybody reaches Ray's ports, which run code"
        return
    for caller in (*OPEN, *STRANGERS):
        for port in PORTS:
            admitted, wanted = admits(guards, caller, port, names), port in OPEN.get(caller, ())
            if admitted != wanted:
                yield f"{caller.who} {'cannot reach' if wanted else 'reaches'} port {port}"
    bounds = [policy for policy in mine if "Egress" in policy_types(policy)]
    yield from _egress_errors(bounds, labels, names) if bounds else ()


def _egress_errors(bounds: list[Document], labels: Mapping[str, str], names: Mapping[str, int]) -> Iterator[str]:
    """Once a policy says Egress, what no rule names is shut; to whom a rule leads is the cluster's own affair."""
    rules = [rule for policy in bounds for rule in policy.get("egress", [])]
    for what, (protocol, port) in NEEDED.items():
        if not any(_names_port(rule, port, {}, protocol) for rule in rules):
            yield f"policyTypes names Egress, and no egress rule leads to {what} ({protocol} {port}); add one"
    among = Caller("", tuple(labels.items()))
    if shut := [
        port for port in PORTS if not any(_names_port(r, port, names) and _names_peer(r, among, "to") for r in rules)
    ]:
        yield f"policyTypes names Egress, and no egress rule leads to the cluster's own pods on {shut}; add one"


def policy_types(policy: Document) -> list[str]:
    """As Kubernetes fills them in."""
    given: list[str] = policy.get("policyTypes", [])
    return given or ["Ingress", *(["Egress"] if policy.get("egress") else [])]


def admits(policies: list[Document], caller: Caller, port: int, names: Mapping[str, int]) -> bool:
    """Whether the ingress rules let a caller in. They add up; without `from` or `ports` a rule is for all.

    Args:
        policies: specs that select the pod.
        names: of the pod's ports.
    """
    rules = [rule for policy in policies for rule in policy.get("ingress", [])]
    return any(_names_port(rule, port, names) and _names_peer(rule, caller, "from") for rule in rules)


def _port_names(pod: Document) -> dict[str, int]:
    ports = ray_container(pod).get("ports", [])
    return {entry["name"]: entry["containerPort"] for entry in ports if "name" in entry}


def _names_port(rule: Document, port: int, names: Mapping[str, int], protocol: str = "TCP") -> bool:
    entries = rule.get("ports", [])
    return not entries or any(
        entry.get("protocol", "TCP") == protocol and _spans(entry, port, names) for entry in entries
    )


def _spans(entry: Document, port: int, names: Mapping[str, int]) -> bool:
    first: int | str | None = entry.get("port")
    if first is None:
        return True
    if isinstance(first, str):
        return names.get(first) == port
    return first <= port <= int(entry.get("endPort", first))


def _names_peer(rule: Document, caller: Caller, side: str) -> bool:
    return not rule.get(side) or any(_is_peer(peer, caller) for peer in rule[side])


def _is_peer(peer: Document, caller: Caller) -> bool:
    """An `ipBlock` is for what is no pod; a peer without namespaceSelector is of the policy's namespace."""
    if "ipBlock" in peer:
        return False
    pod = _selects(peer.get("podSelector", {}), dict(caller.pod))
    if "namespaceSelector" not in peer:
        return caller.namespace is None and pod
    return _selects(peer["namespaceSelector"], dict(caller.namespace or ())) and pod


def _selects(selector: Document, labels: Mapping[str, str]) -> bool:
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        _meets(expression, labels) for expression in selector.get("matchExpressions", [])
    )


def _meets(expression: Document, labels: Mapping[str, str]) -> bool:
    key, values = expression["key"], expression.get("values", [])
    match expression["operator"]:
        case "In":
            return labels.get(key) in values
        case "NotIn":
            return labels.get(key) not in values
        case "Exists":
            return key in labels
        case _:
            return key not in labels
