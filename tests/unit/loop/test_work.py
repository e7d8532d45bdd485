"""The loop's jobs, without Ray: a gate on a tiny model and a sealed snapshot, from its files to its verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from kto_ray.adapters.publish import publish
from kto_ray.config import Config
from kto_ray.config.deciding import GateSection
from kto_ray.loop import work
from kto_ray.records.adapters import AdapterVersion
from kto_ray.records.evaluation import GateDecision, GuardAnswer, Tokens
from kto_ray.records.snapshots import SnapshotManifest
from kto_ray.store import completions, store_of
from tests.support.provenance import completion, seal
from tests.support.tiny import tiny_model

HI = ({"role": "user", "content": "Hi"},)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setenv("KTO_RAY_CACHE", str(tmp_path / "cache"))
    model = {"id": tiny_model(tmp_path / "model"), "dtype": "float32"}
    return Config.model_validate({"home": str(tmp_path), "model": model})


def adapter(config: Config, manifest: SnapshotManifest, folder: Path, noise: float) -> AdapterVersion:
    """A published adapter of the tiny model, which is the base itself where there is no noise."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(config.model.id)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=noise)
    model.save_pretrained(folder)
    return publish(config, str(folder), 1, manifest, None, 1.0)


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_the_gate_reads_the_held_out_rows_and_measures_the_candidate(
    config: Config, tmp_path: Path, noise: float
) -> None:
    manifest, uri = seal(tmp_path, {"train": [("c1", "ann")], "holdout": [("c2", "bo"), ("c3", "cy")]}, 1)
    candidate = adapter(config, manifest, tmp_path / "adapter", noise)
    answers = [GuardAnswer(HI, "Hello there.", "stop", Tokens((1, 2, 3), (4, 5)))]
    (tmp_path / "cache" / "adapters" / "of one that was killed").mkdir(parents=True)
    report = work.gate(config, candidate, None, uri, answers, answers)
    assert report.adapter == candidate.name and report.metrics["n_holdout_users"] == 2.0
    assert list((tmp_path / "cache" / "adapters").iterdir()) == [], (
        "the copy that it read is gone, and what others left"
    )
    assert (report.metrics["kl_base"] != 0.0) is (noise > 0), "the base itself is no nat away"
    assert report.metrics["length_ratio"] == 1.0 and report.decision is not GateDecision.PROMOTE_TO_CANARY


def test_a_judge_s_figures_and_words_are_in_the_report(config: Config, tmp_path: Path) -> None:
    manifest, uri = seal(tmp_path, {"train": [("c1", "ann")], "holdout": [("c2", "bo"), ("c3", "cy")]}, 1)
    candidate = adapter(config, manifest, tmp_path / "adapter", 0.0)
    with store_of(config).write() as tx:
        for name in ("c2", "c3"):
            completions.insert(tx, completion(name, "bo"))
    gate = {"min_holdout_users": 2, "judge": {"kind": "rule", "pattern": "^Hello", "min_win_rate": 0.9}}
    judged = config.model_copy(update={"gate": GateSection.model_validate(gate)})
    new, old = ([GuardAnswer(HI, text, "stop", Tokens((1, 2), (4,)))] * 20 for text in ("Well.", "Hello."))
    report = work.gate(judged, candidate, None, uri, new, old)
    assert (report.metrics["judge_win_rate"], report.metrics["n_judged"]) == (0.0, 20.0)
    assert report.decision is GateDecision.REJECT
    assert any(reason.startswith("the judge likes it less") for reason in report.reasons)
    assert any("it rated have the same thumb" in reason for reason in report.reasons), "both could be read"


@pytest.mark.parametrize(("function", "gpus"), [(work.examine, 0.5), (work.seal, 0), (work.learn, 0)])
def test_a_job_asks_for_the_gpu_that_it_uses(function: Any, gpus: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate computes by itself; training asks for its workers' GPUs."""
    asked: dict[str, Any] = {}

    def remote(**options: Any) -> Any:
        asked.update(options)
        return lambda function: Mock()

    monkeypatch.setattr("ray.remote", remote)
    train = {"device": "gpu", "gpus_per_worker": 0.5}
    work.start(function, Config.model_validate({"train": train}))
    assert asked["num_gpus"] == gpus
    work.start(function, Config())
    assert asked["num_gpus"] == 0


def test_a_suite_that_cannot_be_asked_is_told_before_a_round_trains(config: Config, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("[{prompt: Hi}]")
    own = Config.model_validate({**config.model_dump(), "gate": {"suites": [str(tmp_path / "own.yaml")]}})
    with pytest.raises(ValueError, match=r"own\.yaml' of gate\.suites is wrong in line 1: item 1 field 'check'"):
        work.seal(own)
