"""Who reaches which port: policies that protect too little, or shut out who must come in, are told."""

from __future__ import annotations

import pytest
from k8s_targets import BASE

from tests.support.manifests import Tree

NETWORK, NAMESPACE = "k8s/base/network.yaml", "k8s/namespace.yaml"
_PART = "part-of: kto-ray"
_SECOND = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: second}\nspec:\n"
_SELECTED = "        - namespaceSelector:\n            matchLabels:\n              "
REACH = {
    "a client": (NETWORK, "kto-ray/client: ", "kto-ray/klient: ", "a client of this namespace cannot reach port 8000"),
    "a client elsewhere": (NETWORK, "ray/clients:", "ray/c:", "namespace of clients cannot reach port 8000"),
    "Prometheus": (NETWORK, "kto-ray/metrics", "metrics", "Prometheus in a namespace for metrics cannot reach port 80"),
    "one of its ports": (NETWORK, "port: 44227", "port: 44228", "for metrics cannot reach port 44227"),
    "the operator": (NETWORK, "port: 8265", "port: 8266", "the KubeRay operator cannot reach port 8265"),
    "everybody": (
        NETWORK,
        f'    - from:\n{_SELECTED}kto-ray/metrics: "true"\n      ports:',
        "    - ports:",
        "a pod of another namespace reaches port 8080",
    ),
    "who calls itself a client": (
        NETWORK,
        f'{_SELECTED}kto-ray/clients: "true"\n',
        "        - namespaceSelector: {}\n",
        "that calls itself a client reaches port 8000",
    ),
    "a policy that guards nothing": (NETWORK, "[Ingress]", "[Egress]", "no NetworkPolicy with policyTypes Ingress"),
    "a head without guard": (
        NETWORK,
        f"{_PART}\n  policy",
        f"{_PART}\n      kto-ray/pool: serve\n  policy",
        "headGroup",
    ),
    "workers without guard": (
        NETWORK,
        f"{_PART}\n  policy",
        f"{_PART}\n      kto-ray/pool: head\n  policy",
        "train: no",
    ),
    "a range of ports": (NETWORK, "port: 8080}", "port: 8001, endPort: 9000}", "for metrics reaches port 8265"),
    "all ports of a caller": (NETWORK, "port: 8080}", "endPort: 9000, port: 6000}", "for metrics reaches port 6379"),
    "another protocol": (NETWORK, "{protocol: TCP, port: 44217}", "{protocol: UDP, port: 44217}", "reach port 44217"),
    "a way out for nothing": (
        NETWORK,
        "[Ingress]",
        "[Ingress, Egress]",
        "no egress rule leads to PostgreSQL (TCP 5432)",
    ),
    "no way to the others": (
        NETWORK,
        "[Ingress]\n",
        "[Ingress, Egress]\n  egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8}}]}]\n",
        "the cluster's own pods on [6379",
    ),
    "a second policy that opens": (
        NETWORK,
        "apiVersion",
        f"{_SECOND}  podSelector: {{}}\n  ingress: [{{}}]\n---\napiVersion",
        "a pod of this namespace without a label reaches port 6379",
    ),
    "all but some": (
        NETWORK,
        'matchLabels:\n              kto-ray/client: "true"\n        -',
        "matchExpressions: [{key: a, operator: DoesNotExist}]\n        -",
        "without a label reaches port 8000",
    ),
    "pods of any right": (NAMESPACE, "enforce: restricted", "enforce: baseline", "must be restricted"),
    "pods that are not held": (NAMESPACE, "security.kubernetes.io/enforce", "security.kubernetes.io/audit", "is None"),
}

LETS = {
    "a load balancer that is no pod": (
        "  ingress:\n",
        "  ingress:\n    - from: [{ipBlock: {cidr: 10.0.0.0/8}}]\n      ports: [{port: 8000}]\n",
    ),
    "a port by its name": ("{protocol: TCP, port: 8080}", "{protocol: TCP, port: metrics}"),
    "a policy of types by default": ("  policyTypes: [Ingress]\n", ""),
    "a way out to all": ("[Ingress]\n", "[Ingress, Egress]\n  egress: [{}]\n"),
    "a second policy that shuts": (
        "apiVersion",
        f"{_SECOND}  podSelector: {{matchLabels: {{app.kubernetes.io/part-of: kto-ray}}}}\n---\napiVersion",
    ),
}


@pytest.mark.parametrize("name", REACH)
def test_a_break_in_a_copy_is_told(tree: Tree, name: str) -> None:
    file, old, new, told = REACH[name]
    tree.edit(file, old, new)
    found = tree.errors((BASE,))
    assert any(told in error for error in found), found


@pytest.mark.parametrize("name", LETS)
def test_what_is_allowed_is_let_be(tree: Tree, name: str) -> None:
    old, new = LETS[name]
    tree.edit(NETWORK, old, new)
    assert tree.errors((BASE,)) == []
