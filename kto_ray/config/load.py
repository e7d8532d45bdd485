"""A configuration from a file, the environment and overrides; what is wrong is told with its fix."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from kto_ray.config.explain import explain
from kto_ray.config.whole import Config


class ConfigError(ValueError):
    """A config that names the field, the value, what is allowed and the fix."""


def load_config(path: str | Path | None = None, overrides: tuple[str, ...] = ()) -> Config:
    """Read a YAML file (or the defaults), apply the environment, then `a.b=c` overrides, and validate.

    Raises:
        ConfigError: as of `read` and `validated`.
    """
    return validated(read(path, overrides))


def read(path: str | Path | None = None, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """What is set, by the file, the environment and overrides, as it stands there.

    An environment variable `KTO_RAY__A__B=c` sets a.b to the text c, so that secrets reach a pod without being in a
    file; pydantic turns it into a number or a truth value where the field is one.

    Raises:
        ConfigError: the file is missing or not YAML, or an override is none.
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
    return tree


def validated(tree: Mapping[str, Any]) -> Config:
    """The configuration that sets this.

    Raises:
        ConfigError: a field is unknown, or a value is not allowed.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        # A default that waits for other fields is no fault of its own
        wrong = [each for each in error.errors() if each["type"] != "default_factory_not_called"]
        raise ConfigError("\n".join(_explain(each) for each in wrong)) from None


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{key!r} cannot be set: {parent!r} is a value, not a section")
    tree[leaf] = value


def _explain(error: Any) -> str:
    words, section = explain(error, Config, "config"), "__".join(str(part) for part in error["loc"][:-1]).upper()
    given = [name for name in sorted(os.environ) if name.startswith(f"KTO_RAY__{section}__")]
    return f"{words} ({', '.join(given)} in the environment)" if error["type"] == "missing" and given else words
