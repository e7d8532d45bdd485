"""The rules that a test goes on under: those that it began with, however strict the config has become since. Pure, but
for what it logs where it cannot keep to that."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import ValidationError

from kto_ray.config.deciding import STORED, RolloutSection
from kto_ray.records.rollouts import RolloutState
from kto_ray.records.trials import REACTIONS

UNNAMED = ("failed", "aborted", "cut_off", "slow")  # the guards of rules that name none

log = logging.getLogger(__name__)


def rules_of(config: RolloutSection, state: RolloutState) -> RolloutSection:
    """Those that a test began with, also where a config that says the same would be refused today as hopeless. Only of
    rules that this program cannot read, as those of another version, the config's."""
    if state.rules is None:
        return config
    try:
        return RolloutSection.model_validate(_as_begun(state.rules), context=STORED)
    except ValidationError as error:
        fields = ", ".join(dict.fromkeys(".".join(map(str, each["loc"])) or "stages" for each in error.errors()))
        _tell(state.id, fields)
        return config


@cache
def _tell(rollout: str, fields: str) -> None:
    """Once in a process: rules are read at every tick."""
    log.error("rollout %s goes on under the config's rules: this version cannot read its own (%s)", rollout, fields)


def _as_begun(rules: Mapping[str, Any]) -> dict[str, Any]:
    """A program from before guards had names had four, and what users do about answers was named also where nobody had
    the time for it."""
    guards = rules.get("guards", UNNAMED)
    return {**rules, "guards": [g for g in guards if g not in REACTIONS or rules.get("settle_hours") != 0]}
