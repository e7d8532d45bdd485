"""The bookkeeping of `bench learn` and its siblings: what is chosen, how figures come about, what is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from kto_ray.bench import engine, experiment, learn
from kto_ray.bench.edits import _edits, _thumbs
from kto_ray.bench.experiment import Found, Work
from kto_ray.cli import app
from kto_ray.config import Config
from kto_ray.people import offline
from kto_ray.people.tastes import TASTES, Habits


def found(policy: list[float]) -> Found:
    return Found(1.0, [0.5], [1.0], policy, [], [], [], [])


class Known(learn.Bench):
    """A bench whose experiments give what the test says; AUC rises with `score`."""

    def __init__(self, score: Any) -> None:
        self.score = score
        self.asked: list[Any] = []
        self.tell = lambda words: None

    def judged(self, variant: Any, point: Any, seed: int, part: Any) -> Any:
        self.asked.append((part, dict(point)))
        return learn.Judged(np.stack([np.full(50, self.score(point)), np.linspace(-1, 1, 50)], axis=1), 1.0)


def test_the_sweep_walks_axis_by_axis_to_the_best_and_sees_validation_only() -> None:
    bench = Known(lambda p: -100 * abs(p["learning_rate"] - 1e-3) - abs(p["beta"] - 0.3) + (p["rank"] == 8) / 10)
    best, tried = bench.sweep(learn.TABLE[0], learn.KTO_SWEEP)
    assert (best["learning_rate"], best["beta"], best["rank"], best["alpha"], best["epochs"]) == (1e-3, 0.3, 8, 16, 1)
    assert {part for part, _ in bench.asked} == {"validation"}
    assert len(tried) == 1 + sum(len(values) for _, values in learn.KTO_SWEEP)
    assert max(point["auc"] for point in tried) == pytest.approx(next(p["auc"] for p in tried if p["rank"] == 8))


def test_a_method_is_swept_from_settings_of_its_own() -> None:
    bench = Known(lambda point: -abs(point["learning_rate"] - 1e-4))
    swept = {variant.method: bench.sweep(variant, axes)[1] for variant, axes in learn.SWEEPS}
    assert list(swept) == ["kto", "sft", "dpo", "simpo"]
    assert {point["beta"] for point in swept["simpo"]} == {2.0}, "a reward a token"
    assert {point["beta"] for point in swept["dpo"]} == {0.1}
    searched = [[point["learning_rate"] for point in swept[method]] for method in ("dpo", "simpo")]
    assert searched[0] == searched[1]


def test_figures_of_known_ratios() -> None:
    rng = np.random.default_rng(0)
    worse = rng.normal(size=(3, 400, 2))
    better = worse + np.array([1.0, 0.0])
    told = learn._figures(better, worse)
    assert told["accuracy"] == pytest.approx(0.76, abs=0.03)  # P(N(1, 2) > 0)
    assert told["auc"] == pytest.approx(0.76, abs=0.03)
    assert 0 < told["auc_over_kto_low"] < told["auc_over_kto"] < told["auc_over_kto_high"]
    assert told["auc_low"] < told["auc"] < told["auc_high"]
    same = learn._figures(worse, worse)
    assert same["auc_over_kto"] == same["auc_over_kto_low"] == same["auc_over_kto_high"] == 0


def test_a_known_experiment_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def make(config: Config, work: Work) -> Any:
        made.append(work)
        return found([1.0])

    monkeypatch.setattr(experiment, "experiment", make)
    first = experiment.kept(tmp_path, Config(), Work("none"), "one", print)
    assert experiment.kept(tmp_path, Config(), Work("none"), "again", print) == first and len(made) == 1
    experiment.kept(tmp_path, Config(), Work("sft"), "another method", print)
    other = Config.model_validate({"kto": {"beta": 0.2}})
    experiment.kept(tmp_path, other, Work("none"), "other settings", print)
    assert len(made) == 3


def test_conversations_have_both_replies_and_fit(tmp_path: Path) -> None:
    def line(conversation: str, label: bool, text: str) -> str:
        return json.dumps({"prompt": "Hi?", "completion": text, "label": label, "conversation": conversation})

    lines = [line("both", True, "Yes."), line("both", False, "No."), line("one", True, "Yes!")]
    lines += [line("long", True, "Well, " * 200), line("long", False, "No!")]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    pairs = learn.conversations(str(tmp_path / "data.jsonl"), 112, Config())
    assert [(up["conversation"], up["label"], down["label"]) for up, down in pairs] == [("both", True, False)]
    with pytest.raises(ValueError, match=r"gives 1 conversations.*raise data.max_length"):
        settings = Config.model_validate({"data": {"max_length": 112}})
        learn.Bench(settings, str(tmp_path / "data.jsonl"), learn.Sizes(), 1, str(tmp_path), print)


def test_thumbs_and_edits_teach_the_same_events() -> None:
    asked = offline.questions(TASTES["short"], 4, "x")
    assert asked == offline.questions(TASTES["short"], 4, "x") != offline.questions(TASTES["short"], 4, "y")
    events = [(question, "A long answer. And on. And on.", "A long answer.") for question in asked]
    assert [r["label"] for r in _thumbs(events)] == [False, True, False, True]
    assert len(_edits(events)) == 2 * len(events)


def test_the_panel_judges_as_the_demo_s_users_do() -> None:
    asked = offline.questions(TASTES["short"], 60, "x")
    answers = [("This is a short answer.", "stop") if i % 2 else ("One. Two. Three. Four.", "stop") for i in range(60)]
    rows = offline.judgements(TASTES["short"], asked, answers, Habits(flip=0, edit=0, silent=0), "judge")
    assert [row["label"] for row in rows] == [bool(i % 2) for i in range(60)]
    assert offline.liked(TASTES["short"], asked, answers) == 0.5
    edited = offline.judgements(TASTES["short"], asked, answers, Habits(flip=0, edit=1, silent=0), "judge")
    assert len(edited) == 90 and sum(row["label"] for row in edited) == 60


def test_serving_is_compared_with_what_vllm_does_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {("base", False): 100, ("base", True): 110, ("one", False): 10, ("one", True): 80, ("mixed", True): 50}
    monkeypatch.setattr(engine, "_in_process", lambda _, work, ours: {n: [rates[work.load, ours] * n] for n in (2, 4)})
    report = engine.bench_engine(Config(), (2, 4), 1, 1, lambda words: None)
    assert report["one_adapter_vs_vllm_ratio"] == {"2": 8, "4": 8}
    console = Console(width=200)
    with console.capture() as shown:
        console.print(engine.table(json.loads(json.dumps(report))))  # as its record is read
    assert "320 (80%)" in shown.get() and "8.0 times" in shown.get()
    assert "0.73, at least 0.8: MISSED" in shown.get(), "80 of our own 110"
    on_gpus = Config(serve=Config().serve.model_copy(update={"device": "gpu"}))
    with pytest.raises(ValueError, match=r"serve\.device is 'gpu'.*set serve\.device: cpu"):
        engine.bench_engine(on_gpus, (2,), 1, 1, print)


def test_peeking_counts_errors_and_waits(tmp_path: Path) -> None:
    told = CliRunner().invoke(
        app, ["bench", "peeking", "--runs", "20", "--users", "60", "--out", str(tmp_path), "--json"]
    )
    report = json.loads(told.stdout)
    assert report == json.loads((tmp_path / "peeking.json").read_text())
    assert all(row["ever_wrong_share"] <= 0.25 for row in report["errors"])
    assert 20 < report["decisions"][0]["users_an_arm"] < report["decisions"][1]["users_an_arm"]


def test_the_benchmark_of_scale_measures_each_page(tmp_path: Path) -> None:
    command = ["bench", "scale", "--events", "1000", "--events", "2000", "--repeats", "2", "--json"]
    told = CliRunner().invoke(app, [*command, "--out", str(tmp_path), "--set", f"home={tmp_path}/home"])
    report = json.loads(told.stdout)
    assert [size["events"] for size in report["sizes"]] == [1000, 2000]
    assert report["sizes"][1]["pending"] == 40 and report["sizes"][1]["rounds"] == 2
    assert all(size["tick_ms"] > 0 and min(size["pages_ms"].values()) > 0 for size in report["sizes"])
    assert report["slopes"].keys() == {"tick", "/v1/loop", "/metrics", "/readyz", "log count"}
    assert report["measured"]["cores"] >= 1 and report["measured"]["commit"]
