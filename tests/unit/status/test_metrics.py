"""What Prometheus gets of trainings: those of rounds, running and ended; a training by hand is none of its business."""

from __future__ import annotations

from kto_ray.config import Config
from kto_ray.records.trainings import TrainingRun
from kto_ray.status.metrics import as_text, metrics
from kto_ray.store import Store, trainings

FIGURES = {"step": 4, "steps": 9, "loss": 0.5, "kl": 0.1, "margin": None, "tokens_per_s": 80.0, "train_s": 12.0}


def scraped(store: Store) -> dict[str, float]:
    with store.read() as tx:
        text = as_text(metrics(tx, Config())).decode()
    return {name: float(value) for name, value in (line.split() for line in text.splitlines() if line[0] != "#")}


def test_the_newest_round_that_trained_is_told_whatever_was_trained_by_hand(sqlite_store: Store) -> None:
    assert "kto_ray_train_round" not in scraped(sqlite_store)
    with sqlite_store.write() as tx:
        trainings.put(tx, TrainingRun("round-1", "s", 1.0, round=1, figures=FIGURES))
        trainings.put(tx, TrainingRun("cli-s-2", "s", 9.0, figures={**FIGURES, "loss": 0.9}))
    told = scraped(sqlite_store)
    assert (told["kto_ray_train_round"], told["kto_ray_train_loss"], told["kto_ray_train_step"]) == (1.0, 0.5, 4.0)
    assert "kto_ray_train_reward_margin" not in told, "a step may hold rows of one class only"
