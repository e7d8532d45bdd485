"""The environment of processes that compute, and of commands; Ray itself is started in tests/integration."""

from __future__ import annotations

import os

import pytest

from kto_ray import cluster


def test_a_process_that_computes_gets_its_threads_and_keeps_its_memory() -> None:
    made = cluster.cpu_engine(3, 2)
    assert made["OMP_NUM_THREADS"] == "3" and made["VLLM_CPU_KVCACHE_SPACE"] == "2"
    assert made.items() >= cluster.cpu_compute(3).items()


def test_what_a_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in cluster.QUIET:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    monkeypatch.setattr("logging.disable", lambda level: None)
    monkeypatch.setattr("warnings.simplefilter", lambda action: None)
    cluster.quiet()
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "info" and os.environ["TQDM_DISABLE"] == "1"
    for name in cluster.QUIET:
        monkeypatch.delenv(name, raising=False)


def test_a_local_ray_has_a_token_whatever_the_environment_says_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    cluster.ask_for_tokens()
    made = os.environ["RAY_AUTH_TOKEN"]
    assert len(made) == 64 and "RAY_AUTH_MODE" not in os.environ, "Ray turns tokens on where none is named"
    cluster.ask_for_tokens()
    assert os.environ["RAY_AUTH_TOKEN"] == made, "one of a process, which may start Ray again"
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    cluster.ask_for_tokens()
    assert os.environ["RAY_AUTH_TOKEN"] != made
    monkeypatch.delenv("RAY_AUTH_TOKEN")
