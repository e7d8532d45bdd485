"""One measurement of `bench serve`, the inside of its process: an engine set up as a replica's is."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

from kto_ray.bench.own_process import answer
from kto_ray.bench.sealed_rows import job_of
from kto_ray.bench.serve import LOADS, Work
from kto_ray.config import Config
from kto_ray.model import resolve_model
from kto_ray.people.offline import messages, questions
from kto_ray.people.tastes import TASTES
from kto_ray.serve.policy.replica import llm_config
from kto_ray.train.kto import lora_config


def adapters(config: Config, model: str, folder: str, count: int) -> list[LoRARequest]:
    """Random adapters of the shape that training gives."""
    shape = lora_config(job_of(config, 0, (1.0, 1.0), folder))
    shape.init_lora_weights = False  # B is not zero
    requests = []
    for index in range(count):
        torch.manual_seed(index)
        base = AutoModelForCausalLM.from_pretrained(model, dtype=config.model.dtype)
        get_peft_model(base, shape).save_pretrained(Path(folder) / str(index))
        requests.append(LoRARequest(f"adapter-{index}", index + 1, str(Path(folder) / str(index))))
    return requests


def measure(config: Config, work: Work) -> dict[str, list[float]]:
    lora, turns = LOADS[work.load]
    model = resolve_model(config.model)
    engine = {**llm_config(config, model).engine_kwargs, "model": model}
    if not lora:
        engine = {k: v for k, v in engine.items() if "lora" not in k}
    with tempfile.TemporaryDirectory() as folder:
        known = adapters(config, model, folder, count=len({i for i in turns if i is not None}))
        llm = LLM(**engine)
        sampling = SamplingParams(max_tokens=work.max_tokens, ignore_eos=True, temperature=0)
        rates: dict[str, list[float]] = {}
        for n in work.at_once:
            spread = [turns[i % len(turns)] for i in range(n)]
            carried = [None if i is None else known[i] for i in spread]
            rates[str(n)] = []
            for turn in range(work.rounds + 1):
                asked = messages(questions(TASTES["short"], n, f"serve/{turn}"))
                began = time.perf_counter()
                done = llm.chat(asked, sampling, lora_request=carried, use_tqdm=False)
                seconds = time.perf_counter() - began
                if turn:  # the first warms up
                    rates[str(n)].append(sum(len(one.outputs[0].token_ids) for one in done) / seconds)
    return rates


if __name__ == "__main__":
    answer(lambda asked: measure(Config.model_validate(asked["config"]), Work(**asked["work"])))
