"""Versions of the policy, and the aliases that point at them."""

from __future__ import annotations

from dataclasses import dataclass, field

from kto_ray.records.completions import Json

BASE = "base"  # alias of the model without an adapter; served as `policy@base`
CHAMPION = "champion"
CHALLENGER = "challenger"
PREVIOUS = "previous"  # the champion before the last promotion, kept loaded for rollback


def is_base(name: str) -> bool:
    """Whether it is the model without an adapter, which every engine holds."""
    return name.endswith(f"@{BASE}")


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """An immutable LoRA adapter. `name` is what the engine serves; `sha256` is that of adapter_model.safetensors."""

    name: str
    number: int
    created_at: float
    uri: str
    sha256: str
    snapshot: str | None
    parent: str | None
    reference: str
    rank: int
    manifest: Json = field(default_factory=dict)
