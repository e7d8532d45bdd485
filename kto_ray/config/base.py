"""What every section of the configuration is made of."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

EMBEDDED_MODEL = "smollm2-135m-instruct"
Share = Annotated[float, Field(ge=0, le=1)]
Hours = Annotated[float, Field(le=100_000)]  # eleven years, so that what ends by then still has a date


class Section(BaseModel):
    """Of finite numbers alone: neither arithmetic of deadlines nor JSON in PostgreSQL knows infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _plain(params: dict[str, Any]) -> dict[str, Any]:
    for name, value in params.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{name} is {value!r}, which JSON does not know ({error}); give a text, a finite number, yes or no, or "
                "lists and mappings of these"
            ) from None
    return params


Params = Annotated[dict[str, Any], AfterValidator(_plain)]  # of somebody else's, who says which there are
