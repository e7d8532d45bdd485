"""`kto-ray demo`: the settings, the service of its own, the verdict and the exit code."""

from __future__ import annotations

import asyncio
import json as jsonlib
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from kto_ray import preflight
from kto_ray.config import Config, validated
from kto_ray.demo import page, report
from kto_ray.demo.figures import figures
from kto_ray.demo.show import Narrator, console
from kto_ray.demo.story import HABITS, Story
from kto_ray.people.tastes import TASTES, Taste

# What suits a demo's short life; the report tells it. Learning: twice the default's rate, so that the few steps of one
# round win a taste, and half the weight on the undesirable half and a small adapter, so that they leave the text whole.
# Texts are short, more users are held out since all are few, few guard prompts are asked, which show little, and the
# canary is brief. Every user is new, for which the demo vouches; a trial is settled with the first judgement, and the
# faults of few users are told apart less finely.
RECIPE = {"learning_rate": 1e-3, "loss_aversion": 0.5, "rank": 8, "alpha": 16}
TUNED: dict[str, Any] = {
    "model": {"max_model_len": 512},
    "data": {"max_length": 256, "holdout_share": 0.3},
    "kto": RECIPE,
    "gate": {"guard_prompts": 16, "suite_margin": 0.5},
    "rollout": {
        "stages": [
            {"name": "canary", "weight": 0.25, "exposed": 5},
            {"name": "ab", "weight": 0.5, "decides": True},
        ],
        "new_users": True,
        "settle_hours": 0,
        "min_hours": 0,
        "min_users": 20,
        "max_users": 400,
        "max_fault_rise": 0.25,
        "max_style_rise": 1,  # a taste may be for questions
    },
    "loop": {"min_labels": 256, "tick_s": 0.5},
}


def demo_config(over: Mapping[str, Any], out_dir: str, seed: int, defaults: bool = False) -> Config:
    """The demo's settings under those that the user's file or --set names; always a fresh, embedded store, one round.
    Only the whole need be valid: what the user sets may fit the demo's settings and not the defaults.

    With `defaults`, nothing is set that bears on what is learnt and decided: all is as in `kto-ray serve`.

    Raises:
        ConfigError: the user's settings are wrong, or do not fit together with the demo's.
    """
    ours: dict[str, Any] = {
        "data": {"seed": seed},
        "loop": {"max_rounds": 1},
        "http": {"port": _free_port()},
    }
    if not defaults:
        ours = _merged(ours, TUNED)
    fixed = {
        # A service of minutes has no week to watch over, and the new champion shows itself
        "rollout": {"holdback": 0, "base_holdback": 0},
        "home": f"{Path(out_dir).absolute()}/home-{time.strftime('%Y%m%d-%H%M%S')}",
        "store_url": None,
        "embedded": True,
    }
    return validated(_merged(_merged(ours, over), fixed))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    both = {**under, **over}
    for key in under.keys() & over.keys():
        if isinstance(under[key], dict) and isinstance(over[key], dict):
            both[key] = _merged(under[key], over[key])
    return both


def run_demo(
    settings: Config,
    taste_name: str,
    out_dir: str = "runs/demo",
    seed: int = 0,
    keep: bool = False,
    json: bool = False,
    defaults: bool = False,
) -> int:
    """Run the demo, by the settings of `demo_config`, against a service of its own; the exit code: 0 when every
    condition holds, else 1.

    Writes report.json and report.html to `out_dir`. With `json`, the report goes to stdout and the story to stderr.

    Raises:
        ValueError: there is no such taste, or the machine is too small.
    """
    taste = TASTES.get(taste_name)
    if taste is None:
        raise ValueError(f"there is no taste {taste_name!r}; choose one of {', '.join(TASTES)}")
    preflight.demand(settings.serve.device, installed=True)
    from kto_ray.app import running  # starts Ray and vLLM: only once the arguments are known to be good

    started = time.monotonic()
    narrator = Narrator(console(stderr=json))
    _introduce(narrator, taste, seed)
    result = sys.stdout
    with ExitStack() as stack:
        if json:
            stack.enter_context(redirect_stdout(sys.stderr))  # whatever Ray has to say
        with narrator.phase("start", "Ray, vLLM, gateway and controller come up", "simulated users chat") as bar:
            try:
                url = stack.enter_context(running(settings, lambda now: bar.show(0, None, now)))
            except KeyboardInterrupt:
                narrator.say("Stopped: ended by the user while the service came up; there is nothing to report.")
                raise
            bar.show(1, 1, f"ready at {url}")
        story = Story(settings, {} if defaults else TUNED, taste, seed, narrator, url, time.monotonic() - started)
        found = asyncio.run(story.tell())
        met = report.conditions(found)
        found["conditions"] = [{"met": c.met, "words": c.words} for c in met]
        out = Path(out_dir)
        report.write(figures(found), out / "figures.json")
        paths = [report.write(found, out / "report.json"), page.write(found, met, out / "report.html")]
        narrator.answers(found["answers"])
        narrator.times(found["stage_s"])
        narrator.verdict(met, [str(path) for path in paths])
        if json:
            print(paths[0].read_text(), file=result, flush=True)
        if keep:
            _keep(narrator, url, settings.model.served_name)
        narrator.say("Stopping the service.")
    return 0 if all(condition.met for condition in met) else 1


def _introduce(narrator: Narrator, taste: Taste, seed: int) -> None:
    narrator.say(f"The users' hidden taste “{taste.name}”: {taste.description}.")
    narrator.say(
        f"{100 * HABITS.flip:.0f}% of their thumbs are flipped at random, and where they dislike an answer, "
        f"{100 * HABITS.edit:.0f}% of them edit it in place of a thumb; "
        f"{100 * HABITS.silent:.0f}% say nothing. Seed {seed}."
    )
    if taste.likes is None:
        narrator.say("There is nothing to learn here: the demo succeeds only when nothing is promoted.")


def _keep(narrator: Narrator, url: str, model: str) -> None:
    body = jsonlib.dumps(
        {"model": model, "user": "me", "messages": [{"role": "user", "content": "Tell me about honey."}]}
    )
    narrator.say(f"The service stays up at {url}. Chat with it:")
    narrator.say(f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'")
    narrator.say(f"  or point any OpenAI client at {url}/v1 (any key). Ctrl-C ends it.")
    with suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)
