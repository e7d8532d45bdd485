"""Files that hold the texts of old completions."""

from __future__ import annotations

from dataclasses import dataclass

# What of a completion an archive holds in the store's place: what users and the policy said. The rest is lineage.
TEXTS = ("messages", "params", "text", "reasoning", "tool_calls", "stop_reason", "prompt_ids", "answer_ids")


@dataclass(frozen=True, slots=True)
class Archive:
    """A Parquet file. Its rows change when one is erased, and with them its file's name (`uri`) and hash."""

    id: str
    created_at: float
    uri: str
    sha256: str
    completions: int
    oldest_at: float
    newest_at: float
