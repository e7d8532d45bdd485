"""How a benchmark becomes a command: the options that all share, its record, its table."""

from __future__ import annotations

import inspect
import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from kto_ray.cli.common import AsJson, ConfigFile, Overrides, err, out, settings_of
from kto_ray.config import Config
from kto_ray.measured import record
from kto_ray.paths import write_atomic
from kto_ray.processor import precision

app = typer.Typer(no_args_is_help=True, help="Measure speed and learning, the peer in the same run.")

OutDir = Annotated[str, typer.Option("--out", help="Where results go.")]
Told = tuple[Mapping[str, Any], Callable[[Any], Any]]  # the report, and what makes a table of it


@dataclass(frozen=True, slots=True)
class Run:
    """What every benchmark is given: its settings and where its results go."""

    settings: Config
    out: str

    def tell(self, words: str) -> None:
        err.print(f"  {words}", highlight=False)


def benchmark(name: str, *overrides: str) -> Callable[[Callable[..., Told]], Callable[..., None]]:
    """A command of its own options and of those that all share. `overrides` come before the user's.

    A benchmark's processes are many and all compute on this machine: they take its precision from here.
    """

    def make(work: Callable[..., Told]) -> Callable[..., None]:
        def command(
            out_dir: OutDir = "runs/bench",
            as_json: AsJson = False,
            config: ConfigFile = None,
            set_: Overrides = None,
            **own: Any,
        ) -> None:
            settings = settings_of(config, [*overrides, *(set_ or [])])
            settings = settings.with_dtype(precision(settings.train.device, settings.model.dtype).dtype)
            signal.signal(signal.SIGTERM, _leave)
            began = time.time()
            found, table = work(Run(settings, out_dir), **own)
            report = {"measured": record(began), **found}
            write_atomic(str(Path(out_dir).absolute() / f"{name}.json"), json.dumps(report, indent=1).encode())
            if as_json:
                out.print_json(data=report)
            else:
                out.print(table(report))
                out.print(f"written to {out_dir}/{name}.json")

        shared = list(inspect.signature(command, eval_str=True).parameters.values())[:-1]
        theirs = list(inspect.signature(work, eval_str=True).parameters.values())[1:]
        keywords = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*theirs, *shared)]
        command.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]  # typer reads this,
        command.__annotations__ = {each.name: each.annotation for each in keywords}  # and these
        app.command(name, help=work.__doc__)(command)
        return command

    return make


def _leave(number: int, frame: object) -> None:
    """What it started is told, too, and nothing else is waited for: threads would start what comes next."""
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            child.terminate()
    os._exit(128 + number)
