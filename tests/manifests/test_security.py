"""Pod security "restricted": each rule of the standard, by a spec that breaks it and nothing else."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from k8s_security import restricted_errors

CONTEXT = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
SOUND: dict[str, Any] = {
    "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    "initContainers": [{"name": "first", "securityContext": CONTEXT}],
    "containers": [{"name": "main", "securityContext": CONTEXT, "ports": [{"containerPort": 8000}]}],
    "volumes": [{"name": "disk", "emptyDir": {}}, {"name": "config", "configMap": {"name": "c"}}],
}
Rules = dict[str, tuple[dict[str, Any], str]]  # fields that break a rule, and what is told
POD: Rules = {
    "hostNetwork": ({"hostNetwork": True}, "hostNetwork must not be set"),
    "hostPID": ({"hostPID": True}, "hostPID must not be set"),
    "hostIPC": ({"hostIPC": True}, "hostIPC must not be set"),
    "volume": ({"volumes": [{"name": "disk", "nfs": {}}]}, "volume 'disk' is a nfs"),
}
POD_CONTEXT: Rules = {
    "root": ({"runAsUser": 0}, "runAsUser must not be 0"),
    "may be root": ({"runAsNonRoot": None}, "container 'main': securityContext.runAsNonRoot must be true"),
    "seccomp": ({"seccompProfile": {"type": "Unconfined"}}, "seccompProfile.type is 'Unconfined'"),
    "no seccomp": ({"seccompProfile": None}, "seccompProfile.type is None"),
    "sysctl": ({"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}, "sysctl 'kernel.msgmax'"),
    "SELinux": ({"seLinuxOptions": {"user": "system_u"}}, "seLinuxOptions is"),
    "AppArmor": ({"appArmorProfile": {"type": "Unconfined"}}, "appArmorProfile.type is 'Unconfined'"),
    "Windows": ({"windowsOptions": {"hostProcess": True}}, "hostProcess must not be set"),
}
CONTAINER_CONTEXT: Rules = {
    "privileged": ({"privileged": True}, "privileged must not be set"),
    "escalation": ({"allowPrivilegeEscalation": True}, "allowPrivilegeEscalation must be false"),
    "escalation by default": ({"allowPrivilegeEscalation": None}, "allowPrivilegeEscalation must be false"),
    "kept capabilities": ({"capabilities": {"drop": ["KILL"]}}, "capabilities.drop must hold ALL"),
    "added capabilities": ({"capabilities": {"drop": ["ALL"], "add": ["SYS_ADMIN"]}}, "add holds ['SYS_ADMIN']"),
    "proc": ({"procMount": "Unmasked"}, "procMount is 'Unmasked'"),
    "own root": ({"runAsNonRoot": False}, "runAsNonRoot must be true"),
    "own seccomp": ({"seccompProfile": {"type": "Unconfined"}}, "seccompProfile.type is 'Unconfined'"),
}
CONTAINER: Rules = {
    "host port": ({"ports": [{"hostPort": 80}]}, "hostPort 80 must not be set"),
    "probe of a host": ({"livenessProbe": {"httpGet": {"host": "example.com"}}}, "livenessProbe names a host"),
    "hook of a host": ({"lifecycle": {"preStop": {"httpGet": {"host": "example.com"}}}}, "preStop names a host"),
}


def test_a_sound_pod_is_let_in() -> None:
    assert restricted_errors(SOUND) == []


def test_low_ports_may_be_bound() -> None:
    spec = copy.deepcopy(SOUND)
    spec["containers"][0]["securityContext"]["capabilities"]["add"] = ["NET_BIND_SERVICE"]
    assert restricted_errors(spec) == []


@pytest.mark.parametrize(("where", "table"), [((), POD), (("securityContext",), POD_CONTEXT)])
def test_a_pod_that_breaks_a_rule_is_refused(where: tuple[str, ...], table: Rules) -> None:
    for fields, told in table.values():
        spec = copy.deepcopy(SOUND)
        _set(spec if not where else spec["securityContext"], fields)
        assert any(told in error for error in restricted_errors(spec)), fields


@pytest.mark.parametrize("kind", ["initContainers", "containers"])
def test_a_container_that_breaks_a_rule_is_refused_and_named(kind: str) -> None:
    for table, context in ((CONTAINER, False), (CONTAINER_CONTEXT, True)):
        for fields, told in table.values():
            spec = copy.deepcopy(SOUND)
            container = spec[kind][0]
            _set(container["securityContext"] if context else container, fields)
            found = restricted_errors(spec)
            assert [error for error in found if told in error and f"'{container['name']}'" in error], fields


def _set(place: dict[str, Any], fields: dict[str, Any]) -> None:
    """None takes a field away."""
    place.update(fields)
    for name in [name for name, value in place.items() if value is None]:
        del place[name]
