"""Whether answers are one version's own, the inside of its process: an engine set up as a replica's is reads each.

A greedy answer follows from what was asked and the weights alone, but for near-ties, which what else is in a batch may
turn. So each token is held to what its version would have said there, given the tokens before it: by how many nats the
likeliest was likelier. An answer that two versions made holds tokens that the one it names would not have said.

It reads in float32, whatever is served: the gaps tell what rounding did to the answer, and not that of a second time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

from kto_ray.bench.own_process import answer
from kto_ray.bench.swap import Said
from kto_ray.config import Config
from kto_ray.model import resolve_model
from kto_ray.serve.policy.replica import llm_config


def gaps(config: Config, folders: Sequence[str], said: Sequence[Said]) -> list[list[float]]:
    """Nats, a number a token of each answer. Adapters are loaded as they are needed: answers of one come together."""
    model = resolve_model(config.model)
    llm = LLM(**{**llm_config(config, model).engine_kwargs, "model": model, "dtype": "float32"})
    known = [LoRARequest(folder, number, folder) for number, folder in enumerate(folders, start=1)]
    read = llm.generate(
        [{"prompt_token_ids": [*one.prompt_ids, *one.answer_ids]} for one in said],
        SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=1),
        lora_request=[known[one.weights] for one in said],
        use_tqdm=False,
    )
    return [_gaps(one, found.prompt_logprobs) for one, found in zip(said, read, strict=True)]


def _gaps(said: Said, logprobs: Any) -> list[float]:
    """Each position tells the likeliest token and the one that stands there."""
    told = logprobs[len(said.prompt_ids) :]
    return [
        max(one.logprob for one in by.values()) - by[token].logprob
        for token, by in zip(said.answer_ids, told, strict=True)
    ]


def _examine(asked: dict[str, Any]) -> dict[str, Any]:
    said = [Said(one["weights"], tuple(one["prompt_ids"]), tuple(one["answer_ids"])) for one in asked["said"]]
    return {"gaps": gaps(Config.model_validate(asked["config"]), asked["folders"], said)}


if __name__ == "__main__":
    answer(_examine)
