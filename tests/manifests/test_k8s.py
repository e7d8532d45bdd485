"""The manifests hold, and `make k8s-check` sees what would break them: each test breaks a copy of the real tree."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import k8s_check
import pytest
import yaml

from kto_ray.config import load_config

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = ROOT.parent / "shared" / "schemas"

needs_tools = pytest.mark.skipif(
    shutil.which("kubectl") is None or not SCHEMAS.is_dir(),
    reason="needs kubectl on the PATH and the KubeRay JSON Schemas in ../shared/schemas",
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for folder in ("k8s", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for file in ("deploy/serve.yaml", "kto_ray/app.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    return tmp_path


def edit(tree: Path, file: str, old: str, new: str) -> None:
    text = (tree / file).read_text()
    assert old in text, f"{file} no longer holds {old!r}"
    (tree / file).write_text(text.replace(old, new))


def errors(tree: Path) -> list[str]:
    return list(k8s_check.check_tree(tree, SCHEMAS).errors)


@needs_tools
def test_the_real_tree_is_valid() -> None:
    report = k8s_check.check_tree(ROOT, SCHEMAS)
    assert report.errors == []
    for target in ("k8s/base", "k8s/overlays/cpu"):
        assert f"ok    {target}  RayService kto-ray" in report.lines
        assert f"ok    {target}  ConfigMap kto-ray-config" in report.lines


RAYSERVICE, CONFIG, SERVE = "k8s/base/rayservice.yaml", "k8s/base/config.yaml", "deploy/serve.yaml"
BUDGET, NETWORK = "k8s/base/disruption.yaml", "k8s/base/network.yaml"

BREAKS = {
    "RayService field": (RAYSERVICE, "workerGroupSpecs:", "workerGroupSpec:", "did you mean 'workerGroupSpecs'?"),
    "RayService top level": (RAYSERVICE, "\nspec:\n", "\nspce:\n", "did you mean 'spec'?"),
    "pod field": (RAYSERVICE, "volumeMounts: *mounts", "volumeMount: *mounts", "did you mean 'volumeMounts'?"),
    "quantity": (RAYSERVICE, "memory: 48Gi", "memory: 48Gib", "does not match"),
    "serve config field": (RAYSERVICE, "  route_prefix: /", "  route_prefx: /", "did you mean 'route_prefix'?"),
    "serve config value": (RAYSERVICE, "      port: 8000\n    logging", "      port: web\n    logging", "got 'web'"),
    "serve copies drift": (SERVE, 'REVISION: "1"', 'REVISION: "2"', "differs from deploy/serve.yaml"),
    "import path": (SERVE, "app:build", "app:biuld", "has no function 'biuld'"),
    "builder argument": (SERVE, "      config: /etc", "      confg: /etc", "did you mean 'config'?"),
    "kto-ray field": (CONFIG, "max_num_seqs:", "max_num_seq:", "did you mean 'max_num_seqs'?"),
    "kto-ray value": (CONFIG, "replicas: 2", "replicas: 0", "serve.replicas"),
    "kto-ray copies drift": (CONFIG, "replicas: 2", "replicas: 1", "differs from configs/production.yaml"),
    "more GPUs than the pool": (CONFIG, "replicas: 2", "replicas: 3", "asks for 3 GPUs"),
    "no such pool": (RAYSERVICE, "kto-ray/pool: train", "kto-ray/pool: trian", "no worker group has the label"),
    "store URL not given": (RAYSERVICE, "KTO_RAY__STORE_URL", "KTO_RAY_STORE_URL", "KTO_RAY__STORE_URL is missing"),
    "secret in clear": (
        RAYSERVICE,
        "valueFrom:\n                    secretKeyRef: {name: kto-ray-secrets, key: salt}",
        "value: pepper",
        "a secret must come from a secretKeyRef",
    ),
    "undocumented secret": (RAYSERVICE, "kto-ray-secrets", "kto-ray-secret", "'kto-ray-secret' is not documented"),
    "no such ConfigMap": (RAYSERVICE, "name: kto-ray-config", "name: kto-ray-conf", "no ConfigMap 'kto-ray-conf'"),
    "config mounted elsewhere": (RAYSERVICE, "mountPath: /etc/kto-ray,", "mountPath: /etc/kto,", "the mounts hold"),
    "name too long": (RAYSERVICE, "name: kto-ray\n", f"name: {'k' * 48}\n", "at most 47 characters"),
    "work on the head": (RAYSERVICE, 'num-cpus: "0"', 'num-cpus: "4"', "must be '0'"),
    "another Ray": (RAYSERVICE, "rayVersion: 2.60.0", "rayVersion: 2.59.0", "rayVersion is '2.59.0'"),
    "budget of nobody": (BUDGET, "pool: serve", "pool: server", "matches no pod"),
    "budget field": (BUDGET, "minAvailable:", "minAvailible:", "did you mean 'minAvailable'?"),
    "values of a Secret": (NETWORK, "kind: NetworkPolicy", "kind: Secret", "must not be in the repo"),
}


@needs_tools
@pytest.mark.parametrize("name", BREAKS)
def test_a_break_in_a_copy_is_told(tree: Path, name: str) -> None:
    file, old, new, told = BREAKS[name]
    edit(tree, file, old, new)
    found = errors(tree)
    assert any(told in error for error in found), found


@needs_tools
def test_a_merge_patch_on_the_rayservice_is_refused(tree: Path) -> None:
    (tree / "k8s/overlays/cpu/rayservice.yaml").write_text("kind: RayService\nmetadata: {name: kto-ray}\nspec: {}\n")
    assert any("must be a JSON 6902 list" in error for error in errors(tree))


@needs_tools
def test_a_moved_worker_group_fails_the_patch_guard(tree: Path) -> None:
    edit(tree, "k8s/base/rayservice.yaml", "groupName: serve", "groupName: chat")
    assert any("overlays/cpu" in error and "kubectl kustomize failed" in error for error in errors(tree))


@needs_tools
def test_an_edit_of_the_config_leaves_the_cluster_as_it_is(tree: Path) -> None:
    """A changed rayClusterConfig makes KubeRay start a second cluster; a config edit may change only the ConfigMap."""
    before = k8s_check.render(tree / "k8s/base")
    edit(tree, "k8s/base/config.yaml", "max_num_seqs: 128", "max_num_seqs: 64")
    after = k8s_check.render(tree / "k8s/base")
    changed = [old["kind"] for old, new in zip(before, after, strict=True) if old != new]
    assert changed == ["ConfigMap"]


@needs_tools
def test_the_command_exits_1_and_says_why(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["k8s_check.py", "--root", str(tree), *arguments])
        return int(k8s_check.main())

    assert run("--schemas", str(SCHEMAS)) == 0
    assert run("--schemas", str(tree / "nowhere")) == 1
    assert "no KubeRay JSON Schemas in" in capsys.readouterr().err
    edit(tree, "k8s/base/config.yaml", "embedded: false", "embeded: false")
    assert run("--schemas", str(SCHEMAS)) == 1
    assert "did you mean 'embedded'?" in capsys.readouterr().out
    monkeypatch.setenv("PATH", str(tree))
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
