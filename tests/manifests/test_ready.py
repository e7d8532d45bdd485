"""What keeps chat where it is answered is told when it goes."""

from __future__ import annotations

from typing import Any

import pytest
from k8s_documents import Document
from k8s_ready import budget_errors
from k8s_targets import BASE, ONE_GPU

from tests.support.manifests import Tree

RAYSERVICE, BUDGET, MIGRATE = "k8s/base/rayservice.yaml", "k8s/base/disruption.yaml", "k8s/base/migrate.yaml"
REDIS = """    gcsFaultToleranceOptions:
      redisAddress: kto-ray-redis:6379 # a Service in this namespace; an ExternalName one for a managed Redis
      redisPassword:
        valueFrom:
          secretKeyRef:
            name: kto-ray-redis
            key: password
"""
BREAKS = {
    "readiness of Ray": (
        RAYSERVICE,
        "{path: /-/healthz, port: 8000}",
        "{path: /api/healthz, port: 52365}",
        "serve: re",
    ),
    "readiness elsewhere": (
        RAYSERVICE,
        "{path: /-/healthz, port: 8000}",
        "{path: /-/healthz, port: 8080}",
        "train: re",
    ),
    "trainers that seem ready": (
        RAYSERVICE,
        "readinessProbe: *takes-chat",
        "readinessProbe: *alive",
        "train: readinessProbe asks '/api/healthz'",
    ),
    "no readiness": (RAYSERVICE, "                readinessProbe: *takes-chat", "", "train: readinessProbe asks None"),
    "chat to the head": (RAYSERVICE, "FromServeSvc: true", "FromServeSvc: false", "excludeHeadPodFromServeSvc must be"),
    "a head that forgets": (RAYSERVICE, REDIS, "", "gcsFaultToleranceOptions is missing"),
    "an end too soon": (RAYSERVICE, "DelaySeconds: 300", "DelaySeconds: 179", "raise it to 180 or more"),
    "an end by default": (
        RAYSERVICE,
        "  rayClusterDeletionDelaySeconds: 300",
        "",
        "rayClusterDeletionDelaySeconds is 60",
    ),
    "a budget of all": (BUDGET, "minAvailable: 1", "minAvailable: 2", "spec.minAvailable is 2 of 2 pods"),
    "a budget of all in percent": (BUDGET, "minAvailable: 1", "minAvailable: 51%", "spec.minAvailable is '51%'"),
    "a Job that does not migrate": (MIGRATE, "[kto-ray, migrate,", "[kto-ray, doctor,", "must begin with kto-ray migr"),
    "a role that may not": (MIGRATE, "key: migrate-url", "key: store-url", "must be of migrate-url"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_break_in_a_copy_is_told(tree: Tree, name: str) -> None:
    file, old, new, told = BREAKS[name]
    tree.edit(file, old, new)
    found = tree.errors((BASE,))
    assert any(told in error for error in found), found


def test_a_probe_may_name_its_port(tree: Tree) -> None:
    tree.edit(RAYSERVICE, "{path: /-/healthz, port: 8000}", "{path: /-/healthz, port: serve}")
    assert tree.errors((BASE,)) == []


def test_where_no_second_cluster_comes_the_head_needs_no_redis_for_it(tree: Tree) -> None:
    tree.edit(RAYSERVICE, REDIS, "")
    assert tree.errors((ONE_GPU,)) == []


@pytest.mark.parametrize(("least", "told"), [(1, False), ("50%", False), ("100%", True), (3, True)])
def test_a_budget_lets_one_of_two_go(services: dict[str, Document], least: Any, told: bool) -> None:
    budget = {"minAvailable": least, "selector": {"matchLabels": {"kto-ray/pool": "serve"}}}
    assert bool(list(budget_errors(budget, [services[BASE]]))) == told
