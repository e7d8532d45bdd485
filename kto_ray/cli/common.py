"""What all commands share: options, consoles, and how a result is told."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console

from kto_ray.config import Config, load_config

if TYPE_CHECKING:
    from kto_ray.store import Store

T = TypeVar("T")

out = Console()
err = Console(stderr=True)

# The panels of `kto-ray --help`, by task.
BEGIN, RUN, LEARN, ANSWER = "Begin", "Run it", "Learn by hand", "Answer for it"
MENTIONED_S = 2.0  # what takes longer leaves a line

ConfigFile = Annotated[str | None, typer.Option("--config", help="YAML file; see configs/.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override one field: --set a.b=c. Repeatable.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def plain(text: str) -> str:
    """Text that may hold what looks like rich's markup."""
    return text.replace("[", r"\[")


def settings_of(path: str | None, overrides: list[str] | None) -> Config:
    return load_config(path, tuple(overrides or ()))


@contextmanager
def step(words: str) -> Iterator[Callable[[str], None]]:
    """One thing that may take long: on a terminal a moving line that leaves its time, elsewhere a line at its start.

    What it yields says what is being done now.
    """
    began = time.monotonic()

    def detail(now: str) -> None:
        if err.is_terminal:
            moving.update(plain(f"{words}: {now}"))
        else:
            err.print(plain(f"{words}: {now}"), soft_wrap=True)

    if not err.is_terminal:
        err.print(plain(words), soft_wrap=True)
    with err.status(plain(words)) as moving:
        yield detail
    took = time.monotonic() - began
    if err.is_terminal and took > MENTIONED_S:
        err.print(plain(f"{words}: {took:.0f} s"), soft_wrap=True)


def warn_of_emulation(config: Config) -> None:
    """Say so where this machine is to compute in a precision that it has no instructions for."""
    if config.ray.address is not None:
        return  # other machines compute
    from kto_ray.processor import precision

    named = {
        "model.dtype": (config.serve.device, config.model.dtype),
        "train.dtype": (config.train.device, config.train.dtype),
    }
    for name, (device, dtype) in named.items():
        of = precision(device, dtype)
        if of.emulated:
            err.print(f"[yellow]warning[/] {name} is {of.dtype}, {plain(of.why)}; auto is faster", soft_wrap=True)


def store_there(config: Config) -> Store:
    """The store, for what has nothing to do with one that is new.

    Raises:
        ValueError: there is none, as of a home that is mistyped.
    """
    import sqlalchemy as sa

    from kto_ray.store import store_of

    url = sa.make_url(config.database_url)
    if url.get_backend_name() == "sqlite" and url.database and not os.path.exists(url.database):
        name, value = ("home", config.home) if config.store_url is None else ("store_url", config.store_url)
        raise ValueError(
            f"there is no store at {url.database!r} ({name}={value!r}); name where yours is by --set {name}=..., or "
            "make one there by `kto-ray serve`"
        )
    return store_of(config)


def read_store(config: Config, query: Callable[[Any], T]) -> T:
    store = store_there(config)
    with store.read() as tx:
        result = query(tx)
    store.close()
    return result


@contextmanager
def ray_up(config: Config) -> Iterator[None]:
    """Ray for the length of a command's work. Meanwhile nothing but a command's result goes to standard output, where
    Ray's listener would print the raylet's warnings; tell the result afterwards."""
    import ray

    from kto_ray.cluster import start_ray

    already = ray.is_initialized()
    with redirect_stdout(sys.stderr):
        try:
            with step("starting Ray"):
                start_ray(config)
            yield
        finally:
            if not already:
                ray.shutdown()


def tell(told: dict[str, Any], as_json: bool) -> None:
    if as_json:
        out.print_json(json.dumps(told, default=str))
        return
    for key, value in told.items():
        out.print(f"{key}: {value:.4g}" if isinstance(value, float) else plain(f"{key}: {value}"), soft_wrap=True)
