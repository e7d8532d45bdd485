"""Log-probabilities of given answers under candidate, champion and base: one model in memory, adapters switched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from transformers import AutoModelForCausalLM

from kto_ray.config import Config
from kto_ray.paths import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from kto_ray.processor import precision
from kto_ray.records.evaluation import Tokens

Who = Literal["candidate", "champion", "base"]


class Scorer:
    """The base model with the candidate's adapter and, where the champion is not the base itself, the champion's.

    Adapters keep the served precision: what is judged is what vLLM serves. Sequences of similar length share a batch of
    at most `batch_tokens` padded tokens, in the same order for every `who`, so that equal policies give equal figures.

    Raises:
        ValueError: an adapter's folder lacks its config or its safetensors weights.
    """

    def __init__(
        self, config: Config, model_path: str, adapter_dir: str, champion_dir: str | None, batch_tokens: int = 1024
    ) -> None:
        torch.set_num_threads(config.train.threads)
        self.device = "cuda" if config.train.device == "gpu" else "cpu"
        served = precision(config.train.device, config.model.dtype)  # the controller has named what is served
        self.batch_tokens = batch_tokens
        base: Any = AutoModelForCausalLM.from_pretrained(
            model_path, revision=config.model.revision, dtype=getattr(torch, served.dtype)
        )
        self.model: Any = PeftModel.from_pretrained(
            base, _checked(adapter_dir), adapter_name="candidate", autocast_adapter_dtype=False
        )
        self.has_champion = champion_dir is not None
        if champion_dir is not None:
            self.model.load_adapter(_checked(champion_dir), adapter_name="champion", autocast_adapter_dtype=False)
        self.model.to(self.device).eval()

    def logprobs(self, who: Who, sequences: Sequence[Tokens]) -> NDArray[np.float64]:
        """Sum of log p(answer token | what is before it) of each sequence, in nats; 0 for an empty answer."""
        sums = np.zeros(len(sequences))
        with torch.no_grad(), self._as(who):
            for batch in self._batches(sequences):
                sums[batch] = self._batch_logprobs([sequences[i] for i in batch])
        return sums

    @contextmanager
    def _as(self, who: Who) -> Iterator[None]:
        if who == "base" or (who == "champion" and not self.has_champion):
            with self.model.disable_adapter():
                yield
        else:
            self.model.set_adapter(who)
            yield

    def _batches(self, sequences: Sequence[Tokens]) -> Iterator[list[int]]:
        batch: list[int] = []
        for index in sorted(range(len(sequences)), key=lambda i: (sequences[i].length, i)):
            if batch and (len(batch) + 1) * sequences[index].length > self.batch_tokens:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _batch_logprobs(self, batch: list[Tokens]) -> list[float]:
        """One forward pass. Padding is on the right, where causal attention never looks."""
        width = max(item.length for item in batch)
        ids = torch.zeros((len(batch), width), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, item in enumerate(batch):
            ids[row, : item.length] = torch.tensor(item.prompt + item.completion)
            mask[row, : item.length] = 1
        # token t is predicted at t - 1; logits of positions that are prompt in every row are never computed
        first = max(0, min(len(item.prompt) for item in batch) - 1)
        keep = torch.arange(first, width, device=self.device)
        ids = ids.to(self.device)
        logits = self.model(
            input_ids=ids, attention_mask=mask.to(self.device), use_cache=False, logits_to_keep=keep
        ).logits
        sums = []
        for row, item in enumerate(batch):
            start, end = max(len(item.prompt), 1), item.length  # nothing predicts a sequence's first token
            scores = logits[row, start - 1 - first : end - 1 - first].float()
            chosen = scores.gather(-1, ids[row, start:end, None]).squeeze(-1)
            sums.append(float((chosen - scores.logsumexp(-1)).double().sum()))
        return sums


def _checked(adapter_dir: str) -> str:
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (Path(adapter_dir) / name).is_file():
            raise ValueError(
                f"adapter folder {adapter_dir!r} holds no {name}; an adapter is {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}"
            )
    return adapter_dir
