"""Our engine: what it leaves out of Ray's start, and what it tells of an adapter that vLLM did not load."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest
from vllm.utils.counter import AtomicCounter

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


@pytest.mark.parametrize(("dead", "numbered"), [(True, True), (False, True), (False, False)])
def test_an_engine_that_has_ended_refused_nothing(monkeypatch: pytest.MonkeyPatch, dead: bool, numbered: bool) -> None:
    """What it refused keeps no slot: vLLM's workers may have given it one before they failed."""
    numbers, removed = AtomicCounter(6), list[int]()

    async def fails(*_: object) -> None:
        if numbered:
            numbers.inc(1)
        raise ValueError("Failed to load lora model: it is broken")

    async def healthy(_: AdapterEngine) -> None:
        if dead:
            raise RuntimeError("EngineCore encountered an issue")

    monkeypatch.setattr(AdapterEngine, "resolve_lora", fails)

    async def remove_lora(number: int) -> None:
        removed.append(number)

    monkeypatch.setattr(AdapterEngine, "check_health", healthy)
    engine = AdapterEngine.__new__(AdapterEngine)
    engine._engine_client = SimpleNamespace(remove_lora=remove_lora)
    engine._oai_models = SimpleNamespace(lora_id_counter=numbers)
    with pytest.raises(RuntimeError if dead else ValueError):
        asyncio.run(engine.load_adapter("policy@v1", "/nowhere"))
    assert removed == ([7] if numbered and not dead else []), "the number of before is another's"
