"""What every schema of a body is made of, and how a body that does not fit one is told. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from kto_ray.serve.gateway.bodies import limits
from kto_ray.serve.gateway.bodies.reading import path
from kto_ray.serve.gateway.errors import ApiError, short

T = TypeVar("T", bound="Body")

Name = Annotated[str, Field(min_length=1, max_length=limits.NAME)]
NameOrEmpty = Annotated[str, Field(max_length=limits.NAME)]  # clients send "" for none


def _describe(schema: dict[str, Any], model: type[Body]) -> None:
    for name in sorted(model.ignored):
        schema["properties"][name] = {"description": "taken and left unread"}


class Body(BaseModel):
    """An object of a request. Types are taken at their word (1 is no boolean, true no number), null says nothing."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=_describe)
    ignored: ClassVar[frozenset[str]] = frozenset()  # what clients send and what means nothing here
    refused: ClassVar[Mapping[str, str]] = {}  # what clients may expect, and why it is not taken

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if value is not None and not cls._says_nothing(key, value)}

    @classmethod
    def _says_nothing(cls, key: str, value: Any) -> bool:
        """Clients dump what they do not use as false, 0 or empty."""
        return key in cls.ignored or (key in cls.refused and not value)


def checked(model: type[T], body: dict[str, Any]) -> T:
    """A body as one of its model.

    Raises:
        ApiError: 400 that names the field.
    """
    for name in body:
        if name in model.refused and body[name]:
            raise ApiError(400, f"{short(name)} {model.refused[name]}", name, "unsupported_parameter")
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise _told(error) from None


def rule(param: str, words: str) -> PydanticCustomError:
    """What a body breaks as a whole, told by the field that mends it."""
    return PydanticCustomError("rule", "{words}", {"words": words, "param": param})


def _told(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False)[0]
    # A part in brackets is no field, but the branch of a union or a mapping's key.
    where = path(part for part in first["loc"] if not str(part).startswith(("<", "["))) or None
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "rule":
        return ApiError(400, message, first["ctx"]["param"])
    if first["type"] == "missing":
        return ApiError(400, f"{where} is missing", where)
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{where} is not known here; leave it out", where, "unknown_parameter")
    return ApiError(400, f"{where}: {message}, got {short(first['input'])}" if where else message, where)
