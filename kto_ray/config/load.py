"""A configuration from a file, the environment and overrides; what is wrong is told with its fix."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from kto_ray.config.deciding import RolloutStage
from kto_ray.config.learning import CandidateSection
from kto_ray.config.whole import Config

SECRET = ("key", "salt", "proxy_secret", "store_url", "signing_keys")  # fields whose values are told to nobody


class ConfigError(ValueError):
    """A config that names the field, the value, what is allowed and the fix."""


def load_config(path: str | Path | None = None, overrides: tuple[str, ...] = ()) -> Config:
    """Read a YAML file (or the defaults), apply the environment, then `a.b=c` overrides, and validate.

    An environment variable `KTO_RAY__A__B=c` sets a.b to the text c, so that secrets reach a pod without being in a
    file; pydantic turns it into a number or a truth value where the field is one.

    Raises:
        ConfigError: the file is missing or not YAML, a field is unknown, or a value is not allowed.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        try:
            tree = yaml.safe_load(Path(path).read_text()) or {}
        except FileNotFoundError:
            raise ConfigError(f"config file {str(path)!r} does not exist; see configs/ for examples") from None
        except OSError as error:
            raise ConfigError(f"config file {str(path)!r} cannot be read: {error.strerror}; name a YAML file") from None
        except (UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"config file {str(path)!r} is not YAML: {error}; see configs/ for examples") from None
        if not isinstance(tree, dict):
            raise ConfigError(f"config file {str(path)!r} must hold a mapping, got {type(tree).__name__}")
    for name in sorted(os.environ):
        if name.startswith("KTO_RAY__"):
            _set(tree, name.removeprefix("KTO_RAY__").lower().replace("__", "."), os.environ[name])
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals:
            raise ConfigError(f"--set wants a.b=c, got {item!r}")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"--set {key.strip()} has the value {text!r}, which is not YAML; quote it") from None
        _set(tree, key.strip(), value)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(e) for e in error.errors())) from None


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{key!r} cannot be set: {parent!r} is a value, not a section")
    tree[leaf] = value


def _explain(error: Any) -> str:
    """One validation error as: field, value, what is allowed, fix."""
    loc = [str(part) for part in error["loc"]]
    name = ".".join(loc)
    if error["type"] == "extra_forbidden":
        known = _fields_at(loc[:-1])
        close = difflib.get_close_matches(loc[-1], known, n=1)
        fix = f"did you mean {close[0]!r}?" if close else f"known fields: {', '.join(known)}"
        return f"config field {name!r} does not exist{_got(loc, error, ' (value {})')}; {fix}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"config section {name!r}: {message}" if name else f"config: {message}"
    return f"config field {name!r}: {message}{_got(loc, error, ', got {}')}"


def _got(loc: list[str], error: Any, form: str) -> str:
    """The value got, but where it is, or may hold, what must be in no log: a secret, by the field's name or what it may
    have been meant to be, an address with a password, or a section with any of these."""
    value = error["input"]
    private = any(difflib.get_close_matches(part.lower(), SECRET, n=1, cutoff=0.7) for part in loc)
    private |= any(word in part.lower() for part in loc for word in ("key", "secret", "password", "token"))
    if private or isinstance(value, (Mapping, BaseModel)) or "@" in str(value):
        return ""
    return form.format(repr(value))


def _of_many(loc: list[str]) -> Iterable[str]:
    """Of an entry of a field that holds several sections."""
    entries: dict[str, type[BaseModel]] = {"stages": RolloutStage, "candidates": CandidateSection}
    return next((section.model_fields for name, section in entries.items() if name in loc), ())


def _fields_at(loc: list[str]) -> list[str]:
    section: type[BaseModel] = Config
    for part in loc:
        field = section.model_fields.get(part)
        if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, BaseModel):
            return sorted(_of_many(loc))
        section = field.annotation
    return sorted(section.model_fields)
