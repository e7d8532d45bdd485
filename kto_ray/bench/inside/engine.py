"""One measurement of `bench engine`, the inside of its process: an engine set up as a replica's is."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

from kto_ray.bench.adapters import make
from kto_ray.bench.engine import LOADS, Work
from kto_ray.bench.own_process import answer
from kto_ray.config import Config
from kto_ray.model import resolve_model
from kto_ray.people.offline import messages, questions
from kto_ray.people.tastes import TASTES
from kto_ray.serve.policy.replica import llm_config


def measure(config: Config, work: Work) -> dict[str, list[float]]:
    lora, turns = LOADS[work.load]
    model = resolve_model(config.model)
    engine = {**llm_config(config, model).engine_kwargs, "model": model}
    if not lora:
        engine = {k: v for k, v in engine.items() if "lora" not in k}
    with tempfile.TemporaryDirectory() as folder:
        made = {i: make(config, Path(folder) / str(i), i) for i in turns if i is not None}
        known = {i: LoRARequest(f"adapter-{i}", i + 1, where) for i, where in made.items()}
        llm = LLM(**engine)
        sampling = SamplingParams(max_tokens=work.max_tokens, ignore_eos=True, temperature=0)
        rates: dict[str, list[float]] = {}
        for n in work.at_once:
            spread = [turns[i % len(turns)] for i in range(n)]
            carried = [None if i is None else known[i] for i in spread]
            rates[str(n)] = []
            for turn in range(work.rounds + 1):
                asked = messages(questions(TASTES["short"], n, f"engine/{turn}"))
                began = time.perf_counter()
                done = llm.chat(asked, sampling, lora_request=carried, use_tqdm=False)
                seconds = time.perf_counter() - began
                if turn:  # the first warms up
                    rates[str(n)].append(sum(len(one.outputs[0].token_ids) for one in done) / seconds)
    return rates


if __name__ == "__main__":
    answer(lambda asked: measure(Config.model_validate(asked["config"]), Work(**asked["work"])))
