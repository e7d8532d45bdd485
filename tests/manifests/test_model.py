"""The base model on a shared volume: pods wait for what the Job leaves, where it leaves it, on every target."""

from __future__ import annotations

import pytest
import yaml
from k8s_documents import jobs_of
from k8s_model import script
from k8s_targets import BASE, CACHE, CACHE_TRAIN, COMBINED, ONE_GPU, Target, documents_of

from tests.support.manifests import ROOT, Tree

JOB, SERVE, CLAIM = f"{CACHE}/prefetch.yaml", f"{CACHE}/rayservice.yaml", f"{CACHE}/claim.yaml"
TRAIN, COMMITS = f"{CACHE_TRAIN}/rayservice.yaml", f"{CACHE}/kustomization.yaml"
MARK = '"$HF_HUB_CACHE/$MODEL_COMMIT.complete"'
BREAKS = {
    "a mark of another commit": (JOB, MARK, '"$HF_HUB_CACHE/b09a35458c70.complete"', "its last line must be `touch"),
    "no mark": (JOB, f"touch {MARK}", "true", "its last line must be `touch /var/cache/kto-ray-model/a09a35458c70"),
    "a mark before the model": (JOB, f"touch {MARK}", f"touch {MARK}\n              echo done", "its last line must"),
    "a mark in spite of a fault": (JOB, "[sh, -euc]", "[sh, -uc]", "goes on after a failed fetch"),
    "a commit that no pod gets": (
        COMMITS,
        "ready].env.[name=MODEL_COMMIT].value",
        "ready].env.0.value",
        "init container",
    ),
    "fetched elsewhere": (JOB, "HF_HUB_CACHE, value: /var/cache/kto-ray-model", "HF_HUB_CACHE, value: /m", "is '/var"),
    "fetched anywhere": (JOB, "name: HF_HUB_CACHE", "name: HF_HUB", "env HF_HUB_CACHE is missing"),
    "fetched to the pod": (
        JOB,
        "mountPath: /var/cache/kto-ray-model}",
        "mountPath: /m}",
        "on no PersistentVolumeClaim",
    ),
    "a claim of one node": (CLAIM, "ReadWriteMany", "ReadWriteOnce", "share it: use ReadWriteMany"),
    "a wait for nothing": (SERVE, "T.complete", "T.done", "no init container waits for /var/cache/kto-ray-model/a09a"),
    "no wait": (SERVE, f"until [ -e {MARK} ]; do sleep 5; done", f"echo {MARK}", "no init container waits for"),
    "a wait until it is gone": (SERVE, f"until [ -e {MARK} ]", f"while [ -e {MARK} ]", "no init container waits for"),
    "a wait of trainers": (TRAIN, "T.complete", "T.done", "train: no init container waits for"),
    "a wait beside the claim": (
        SERVE,
        "      volumeMounts:\n        - {name: model, mountPath: /var/cache/kto-ray-model,",
        "      volumeMounts:\n        - {name: model, mountPath: /m,",
        "and would wait for ever",
    ),
    "an image of its own": (COMMITS, "wait-model-ready].image", "wait-model-ready].name", "all must run the same"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_break_in_a_copy_is_told(tree: Tree, name: str) -> None:
    file, old, new, told = BREAKS[name]
    tree.edit(file, old, new)
    found = tree.errors((CACHE,))
    assert any(told in error for error in found), found


@pytest.mark.parametrize("target", COMBINED, ids=lambda target: target.name)
def test_every_target_waits_for_its_own_commit(tree: Tree, target: Target) -> None:
    """As k8s/README.md says to use it."""
    documents = documents_of(target, tree.root)
    assert tree.errors((target.name,)) == []
    config = next(document for document in documents if document["kind"] == "ConfigMap")
    commit = yaml.safe_load(config["data"]["config.yaml"])["model"]["revision"][:12]
    job = next(job for job in jobs_of(documents) if commit in job["metadata"]["name"])
    assert f"/{commit}.complete" in script(job["spec"]["template"]["spec"]["containers"][0])


@pytest.mark.parametrize("folder", [BASE, ONE_GPU])
def test_another_commit_is_two_edits_and_one_alone_is_told(tree: Tree, folder: str) -> None:
    target = next(each for each in COMBINED if each.resources == folder)
    commit = yaml.safe_load((tree.root / folder / "config.yaml").read_text())["model"]["revision"]
    for file in (f"{folder}/config.yaml", *(["configs/production.yaml"] if folder == BASE else [])):
        tree.edit(file, commit, f"feed{commit[4:]}")
    assert any("model.revision in config.yaml begins 'feed" in error for error in tree.errors((target.name,)))
    tree.edit(f"{folder}/kustomization.yaml", commit[:12], f"feed{commit[4:12]}")
    assert tree.errors((target.name,)) == []
    assert f"kto-ray-model-feed{commit[4:12]}" in [
        job["metadata"]["name"] for job in jobs_of(documents_of(target, tree.root))
    ]


def test_a_training_pool_without_its_component_is_told(tree: Tree) -> None:
    kustomization = tree.root / CACHE_TRAIN / "kustomization.yaml"
    kustomization.write_text(kustomization.read_text().split("replacements:")[0])
    (tree.root / TRAIN).write_text("- op: test\n  path: /kind\n  value: RayService\n")
    found = tree.errors((CACHE,))
    assert any("train: HF_HUB_CACHE is None" in error for error in found), found


def test_the_embedded_model_needs_no_cache(tree: Tree) -> None:
    tree.edit(f"{BASE}/config.yaml", "id: Qwen/Qwen2.5-7B-Instruct\n  revision:", "served_name:")
    tree.edit(f"{BASE}/kustomization.yaml", '"a09a35458c70"', '"none"')
    assert any("there is no model to fetch" in error for error in tree.errors((CACHE,)))


def test_pods_that_wait_for_no_job_are_told(tree: Tree) -> None:
    tree.edit(f"{CACHE}/kustomization.yaml", "  - prefetch.yaml\n", "")
    text = (tree.root / COMMITS).read_text().split("replacements:")[0]
    (tree.root / COMMITS).write_text(text)
    assert any("waits for a model that no Job kto-ray-model-* fetches" in error for error in tree.errors((CACHE,)))


def test_every_component_is_checked_somewhere() -> None:
    there = {f"k8s/components/{path.name}" for path in (ROOT / "k8s/components").iterdir()}
    assert there == {component for target in COMBINED for component in target.components}
