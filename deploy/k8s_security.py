"""Pod security "restricted", which the namespace enforces: the rules of the Pod Security Standards on a pod's spec.
Part of k8s_check.py; https://kubernetes.io/docs/concepts/security/pod-security-standards/ has them in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from k8s_documents import Document, containers

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
}
SELINUX_TYPES = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
PROFILES = ("RuntimeDefault", "Localhost")


def restricted_errors(spec: Document) -> list[str]:
    """What an admission to a namespace with `enforce: restricted` would refuse; [] where nothing is."""
    pod = spec.get("securityContext", {})
    errors = [f"{field} must not be set" for field in ("hostNetwork", "hostPID", "hostIPC") if spec.get(field)]
    for volume in spec.get("volumes", []):
        errors += [f"volume {volume['name']!r} is a {kind}" for kind in volume if kind not in VOLUMES | {"name"}]
    unsafe = [entry["name"] for entry in pod.get("sysctls", []) if entry["name"] not in SYSCTLS]
    errors += [f"sysctl {name!r} is not among the safe ones" for name in unsafe]
    errors += _common(pod)
    for container in containers(spec):
        errors += [f"container {container['name']!r}: {error}" for error in _container(container, pod)]
    return errors


def _container(container: Document, pod: Document) -> Iterator[str]:
    own = container.get("securityContext", {})
    yield from _common(own)
    if own.get("privileged"):
        yield "privileged must not be set"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "securityContext.allowPrivilegeEscalation must be false"
    if own.get("procMount", "Default") != "Default":
        yield f"securityContext.procMount is {own['procMount']!r}; only Default is allowed"
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []):
        yield "securityContext.capabilities.drop must hold ALL"
    if added := set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield f"securityContext.capabilities.add holds {sorted(added)}"
    if _either("runAsNonRoot", own, pod) is not True:
        yield "securityContext.runAsNonRoot must be true, here or in the pod"
    if (profile := _either("seccompProfile", own, pod) or {}).get("type") not in PROFILES:
        yield f"securityContext.seccompProfile.type is {profile.get('type')!r}; use RuntimeDefault, here or in the pod"
    for port in container.get("ports", []):
        if port.get("hostPort"):
            yield f"hostPort {port['hostPort']} must not be set"
    yield from _hosts(container)


def _common(context: Document) -> Iterator[str]:
    """Rules on the pod's context and on a container's alike."""
    if context.get("runAsUser") == 0:
        yield "securityContext.runAsUser must not be 0"
    if context.get("windowsOptions", {}).get("hostProcess"):
        yield "securityContext.windowsOptions.hostProcess must not be set"
    selinux = context.get("seLinuxOptions", {})
    if selinux.get("type", "") not in SELINUX_TYPES or selinux.get("user") or selinux.get("role"):
        yield f"securityContext.seLinuxOptions is {selinux}; only containers' types are allowed, and no user or role"
    if (profile := context.get("appArmorProfile", {}).get("type", "RuntimeDefault")) not in PROFILES:
        yield f"securityContext.appArmorProfile.type is {profile!r}"


def _hosts(container: Document) -> Iterator[str]:
    """A probe or a hook that names a host would let the kubelet be sent to any address."""
    lifecycle = container.get("lifecycle", {})
    actions = {name: container.get(name, {}) for name in ("livenessProbe", "readinessProbe", "startupProbe")}
    actions |= {name: lifecycle.get(name, {}) for name in ("postStart", "preStop")}
    for name, action in actions.items():
        if any(action.get(kind, {}).get("host") for kind in ("httpGet", "tcpSocket")):
            yield f"{name} names a host"


def _either(field: str, own: Document, pod: Document) -> Any:
    return own[field] if field in own else pod.get(field)
