"""Who reaches which port: the NetworkPolicy held to a table of callers. Part of k8s_check.py."""

from __future__ import annotations

from dataclasses import dataclass

from k8s_documents import Document


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


def network_errors(policy: Document) -> list[str]:
    errors = []
    for caller in (*OPEN, *STRANGERS):
        for port in PORTS:
            admitted, wanted = admits(policy, caller, port), port in OPEN.get(caller, ())
            if admitted != wanted:
                errors.append(f"{caller.who} {'cannot reach' if wanted else 'reaches'} port {port}")
    return errors


def admits(policy: Document, caller: Caller, port: int) -> bool:
    """Whether the policy's ingress rules let a caller in. They add up; without `from` or `ports` a rule is for all."""
    rules = policy["spec"].get("ingress", [])
    return any(_names_port(rule, port) and _names_peer(rule, caller) for rule in rules)


def _names_port(rule: Document, port: int) -> bool:
    return "ports" not in rule or any(entry.get("port") == port for entry in rule["ports"])


def _names_peer(rule: Document, caller: Caller) -> bool:
    return "from" not in rule or any(_is_peer(peer, caller) for peer in rule["from"])


def _is_peer(peer: Document, caller: Caller) -> bool:
    """A peer without namespaceSelector is of the policy's namespace."""
    if "namespaceSelector" not in peer:
        return caller.namespace is None and _selects(peer["podSelector"], caller.pod)
    namespace = _selects(peer["namespaceSelector"], caller.namespace or ())
    return namespace and _selects(peer.get("podSelector", {}), caller.pod)


def _selects(selector: Document, labels: tuple[tuple[str, str], ...]) -> bool:
    return set(selector.get("matchLabels", {}).items()) <= set(labels)
