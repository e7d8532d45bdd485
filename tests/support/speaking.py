"""The engine that speaks, under a path by which Ray's replicas find it (RAYLLM_VLLM_ENGINE_CLS)."""

from __future__ import annotations

from tests.support.engine import speaking_engine

Speaking = speaking_engine()
