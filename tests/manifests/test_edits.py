"""What an edit does, by KubeRay's hash; and that the README says it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml
from k8s_documents import Document, render
from k8s_edits import EDITS, IGNORED, IN_PLACE, NEW, NOTHING, TARGETS, cluster_hash, effect, table

from tests.support.manifests import ROOT, Tree

BASE, ONE_GPU = "k8s/base", "k8s/overlays/single-gpu"
SERVING: tuple[str | int, ...] = ("workerGroupSpecs", 0)
MUTED: dict[str, tuple[tuple[str | int, ...], Any]] = {
    "replicas": ((*SERVING, "replicas"), 7),
    "minReplicas": ((*SERVING, "minReplicas"), 0),
    "maxReplicas": ((*SERVING, "maxReplicas"), 99),
    "workersToDelete": ((*SERVING, "scaleStrategy"), {"workersToDelete": ["a"]}),
    "a pool's tolerations": ((*SERVING, "template", "spec", "tolerations"), []),
    "the head's tolerations": (("headGroupSpec", "template", "spec", "tolerations"), [{"operator": "Exists"}]),
    "schedulingGates": ((*SERVING, "template", "spec", "schedulingGates"), [{"name": "kueue.x-k8s.io/admission"}]),
    "suspend": (("suspend",), True),
    "upgradeStrategy": (("upgradeStrategy",), {"type": "Recreate"}),
}
HASHED: dict[str, tuple[tuple[str | int, ...], Any]] = {
    "image": ((*SERVING, "template", "spec", "containers", 0, "image"), "kto-ray:2"),
    "labels": (("headGroupSpec", "labels"), {"kto-ray/pool": "other"}),
    "start": (("headGroupSpec", "rayStartParams", "num-cpus"), "1"),
    "version": (("rayVersion",), "2.61.0"),
    "autoscaling": (("enableInTreeAutoscaling",), True),
    "a pool's grace": ((*SERVING, "template", "spec", "terminationGracePeriodSeconds"), 181),
}


def changed(service: Document, path: tuple[str | int, ...], value: Any) -> Document:
    """A RayService with another value in its rayClusterConfig."""
    service = copy.deepcopy(service)
    place: Any = service["spec"]["rayClusterConfig"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return service


@pytest.mark.parametrize("name", MUTED)
def test_what_kuberay_leaves_out_of_its_hash_is_ignored_in_silence(services: dict[str, Document], name: str) -> None:
    before = services[BASE]
    after = changed(before, *MUTED[name])
    assert cluster_hash(before["spec"]["rayClusterConfig"]) == cluster_hash(after["spec"]["rayClusterConfig"])
    assert effect(before, after) == IGNORED


@pytest.mark.parametrize("name", HASHED)
def test_all_else_is_another_cluster_or_waits_where_there_may_be_none(services: dict[str, Document], name: str) -> None:
    assert effect(services[BASE], changed(services[BASE], *HASHED[name])) == NEW
    assert effect(services[ONE_GPU], changed(services[ONE_GPU], *HASHED[name])) == IGNORED


def test_only_a_pool_at_the_end_is_added_in_place(services: dict[str, Document]) -> None:
    pools = services[BASE]["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    another = copy.deepcopy(pools[0]) | {"groupName": "another"}
    orders = {"end": ([*pools, another], IN_PLACE), "front": ([another, *pools], NEW), "less": (pools[:1], NEW)}
    for groups, expected in orders.values():
        assert effect(services[BASE], changed(services[BASE], ("workerGroupSpecs",), groups)) == expected


def test_an_edit_of_the_serve_config_is_in_place(services: dict[str, Document]) -> None:
    after = copy.deepcopy(services[BASE])
    after["spec"]["serveConfigV2"] = after["spec"]["serveConfigV2"].replace("num_replicas: 2", "num_replicas: 3")
    assert effect(services[BASE], after) == IN_PLACE
    assert effect(services[BASE], services[BASE]) == NOTHING


def test_the_readme_has_the_table_and_every_edit_one_effect(services: dict[str, Document]) -> None:
    made = table(services)
    assert made in (ROOT / "k8s/README.md").read_text()
    rows = [line.split(" | ") for line in made.splitlines()[2:]]
    assert len(rows) == len(EDITS)
    assert {effect for row in rows for effect in row[1 : 1 + len(TARGETS)]} == {NOTHING, IN_PLACE, IGNORED, NEW}


def test_an_edit_of_the_config_leaves_the_cluster_as_it_is(tree: Tree) -> None:
    """Its ConfigMap has a name without a hash, so nothing that names it changes."""
    before = render(tree.root / BASE)
    tree.edit("k8s/base/config.yaml", "max_num_seqs: 128", "max_num_seqs: 64")
    after = render(tree.root / BASE)
    assert [old["kind"] for old, new in zip(before, after, strict=True) if old != new] == ["ConfigMap"]


def test_replicas_are_of_the_serve_config_in_every_target(services: dict[str, Document]) -> None:
    for service in services.values():
        (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
        assert {each["name"] for each in application["deployments"]} == {"Policy", "Gateway"}
