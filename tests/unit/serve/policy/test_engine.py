"""The engine starts Ray's download task only where the model's files are not here."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from kto_ray.serve.policy.engine import AdapterEngine


@pytest.mark.parametrize("here", [True, False])
def test_a_model_that_is_here_is_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: bool) -> None:
    seen: list[bool] = []
    callback = SimpleNamespace(ctx=SimpleNamespace(run_init_node=True))
    source = str(tmp_path) if here else "s3://bucket/model"

    async def start(engine: AdapterEngine) -> None:
        seen.append(engine.llm_config.get_or_create_callback().ctx.run_init_node)

    monkeypatch.setattr(AdapterEngine.__base__, "start", start)
    engine = AdapterEngine.__new__(AdapterEngine)
    engine.llm_config = SimpleNamespace(
        get_engine_config=lambda: SimpleNamespace(actual_hf_model_id=source), get_or_create_callback=lambda: callback
    )
    asyncio.run(engine.start())
    assert seen == [not here]
