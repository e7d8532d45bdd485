"""What the demo's bars say of where a phase stands."""

from __future__ import annotations

import time

from kto_ray.demo.report import Report
from kto_ray.people.crowd import Crowd


def rate_words(crowd: Crowd, phase: str) -> str:
    judged = crowd.judgements(phase)
    return f"thumbs-up rate {sum(bool(t.up) for t in judged) / len(judged):.2f}" if judged else "no thumbs yet"


def round_words(this: Report, coming: str) -> tuple[float, float | None, str]:
    """(done, total, note) of a round's bar; without steps to count the bar pulses."""
    words = f"{this['stage']} for {max(0.0, time.time() - this['stage_started_at']):.0f} s"
    if this["attempts"]:
        words += f" (attempt {this['attempts'] + 1}, after {this['reason']})"
    train = this["train_metrics"]
    if this["stage"] == "train" and train:
        words += (
            f", step {train['step']}/{train['steps']}, loss {train['loss']:.3f}, {train['tokens_per_s']:.0f} tokens/s"
        )
        return train["step"], train["steps"], f"{words}; next: {coming}"
    return 0, None, f"{words}; next: {coming}"


def rollout_words(live: Report) -> tuple[int, str]:
    """(judged users so far, note) of a rollout's present stage."""
    nobody = {"users": 0, "up": 0}
    count = live["counts"].get(live["stage_name"], {"champion": nobody, "challenger": nobody})
    champion, challenger = (f"{count[arm]['up']:g}/{count[arm]['users']} up" for arm in ("champion", "challenger"))
    low, high = live["interval"]
    words = (
        f"{live['stage_name']}: champion {champion}, challenger {challenger}, difference in [{low:+.2f}, {high:+.2f}]"
    )
    return count["champion"]["users"] + count["challenger"]["users"], words
