"""What is wrong with a section, in words: the field, what is allowed, the value got and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

SECRET = ("key", "salt", "proxy_secret", "store_url", "signing_keys")  # fields whose values are told to nobody
WORDS = {
    "tuple_type": "must be a whole list, as [a, b]",
    "dict_type": "must hold fields, as {a: b}",
    "model_type": "must be a section, which holds fields, as {a: b}",
    "finite_number": "must be a finite number; give a large one for what should be no limit, or leave it out",
    "invalid_key": "is no name of a field; where a comma parts a value, as in 1,000, write 1000, or put it in quotes",
    "string_type": "must be a text; put it in quotes, for YAML reads 1, yes, no and 2024-01-05 as something else",
}


def explain(error: Any, whole: type[BaseModel], noun: str) -> str:
    """One of pydantic's errors about a `whole`, of which a field is a `noun` field."""
    loc = [str(part) for part in error["loc"]]
    name = ".".join(loc)
    if error["type"] == "extra_forbidden":
        fix = suggest(loc[-1], _section_at(loc[:-1], whole).model_fields)
        return f"{noun} field {name!r} does not exist{_got(loc, error, ' (value {})')}; {fix}"
    if error["type"] == "missing":
        return f"{noun} field {name!r} is missing; {_missing(loc, error['input'], whole)}"
    message = WORDS.get(error["type"], error["msg"].removeprefix("Value error, "))
    if error["type"] == "value_error":
        return f"{noun} section {name!r}: {message}" if name else f"{noun}: {message}"
    return f"{noun} field {name!r}: {message}{_got(loc, error, ', got {}')}"


def suggest(name: str, known: Iterable[str]) -> str:
    """Which field was meant by a name that is none."""
    close = difflib.get_close_matches(name, known := sorted(known), n=1)
    return f"did you mean {close[0]!r}?" if close else f"known fields: {', '.join(known)}"


def _missing(loc: list[str], given: Any, whole: type[BaseModel]) -> str:
    """A section that has some of its fields, and lacks one without which it means nothing."""
    section, fields = ".".join(loc[:-1]), _section_at(loc[:-1], whole).model_fields
    allowed = fields[loc[-1]].annotation
    choices = f" to {' or '.join(map(repr, get_args(allowed)))}" if get_origin(allowed) is Literal else ""
    there = [name for name in given if name in fields] if isinstance(given, Mapping) else []
    held = f", which has {', '.join(there)}" if there else ""
    return f"set it{choices}" + (f", or take out {section!r}{held}" if section else "")


def _got(loc: list[str], error: Any, form: str) -> str:
    """The value got, but where it is, or may hold, what must be in no log: a secret, by the field's name or what it may
    have been meant to be, an address with a password, or a section with any of these."""
    value = error["input"]
    private = any(difflib.get_close_matches(part.lower(), SECRET, n=1, cutoff=0.7) for part in loc)
    private |= any(word in part.lower() for part in loc for word in ("key", "secret", "password", "token"))
    if private or isinstance(value, (Mapping, BaseModel)) or "@" in str(value):
        return ""
    return form.format(repr(value))


def _section_at(loc: list[str], whole: type[BaseModel]) -> type[BaseModel]:
    """Also within a list or a mapping of sections, whose numbers and names are no fields."""
    for part in loc:
        field = whole.model_fields.get(part)
        whole = (_section_in(field.annotation) if field is not None else None) or whole
    return whole


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that an annotation holds: itself, or one that may be left out, or one of many."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_in(part)) is not None), None)
