"""What the demo says on the terminal: phases, a live bar, tables. Without a terminal, a line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from kto_ray.demo.report import Condition, Report

PHASES = ("start", "before", "round", "A/B", "after", "examine")
WIDTH = 140  # of tables where there is no terminal
QUIET_S = 15.0  # between two progress lines where there is no terminal


class Bar:
    """A live bar of one phase: how far it is, and a note."""

    def __init__(self, progress: Progress, task: TaskID, console: Console) -> None:
        self.progress, self.task, self.console = progress, task, console
        self.spoke_at, self.note, self.spoken = time.monotonic(), "", ""

    def show(self, done: float, total: float | None, note: str) -> None:
        """Set the bar to done/total (an unknown total pulses) and the words beside it."""
        self.progress.update(self.task, completed=done, total=total, note=escape(note))
        self.note = note
        if time.monotonic() - self.spoke_at >= QUIET_S:
            self._speak()

    def close(self) -> None:
        """Leave the last words standing; a bar that only pulsed is full now."""
        if self.progress.tasks[self.task].total is None:
            self.progress.update(self.task, completed=1, total=1)
        self._speak()

    def _speak(self) -> None:
        if not self.console.is_terminal and self.note != self.spoken:
            self.console.print(f"      {escape(self.note)}", soft_wrap=True)
        self.spoke_at, self.spoken = time.monotonic(), self.note


def console(stderr: bool) -> Console:
    """The terminal; where there is none, lines of a fixed width."""
    found = Console(stderr=stderr)
    return found if found.is_terminal else Console(stderr=stderr, width=WIDTH)


class Narrator:
    """Tells the story. `console` writes to stderr when stdout is wanted for JSON."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def say(self, words: str) -> None:
        self.console.print(escape(words), soft_wrap=True)

    @contextmanager
    def phase(self, title: str, what: str, coming: str) -> Iterator[Bar]:
        """One of the PHASES with its bar; says first what happens and what comes next."""
        where = f"\\[{PHASES.index(title) + 1}/{len(PHASES)}] {escape(title)}"
        self.console.print(f"\n[bold]{where}[/]: {escape(what)}", soft_wrap=True)
        self.console.print(f"      [dim]next: {escape(coming)}[/]", soft_wrap=True)
        columns = (TextColumn("     "), BarColumn(bar_width=28), TextColumn("{task.fields[note]}"), TimeElapsedColumn())
        with Progress(*columns, console=self.console, disable=not self.console.is_terminal) as progress:
            task = progress.add_task(title, total=None, note="")
            bar = Bar(progress, task, self.console)
            yield bar
            bar.close()

    def answers(self, rows: Sequence[Report]) -> None:
        """The same questions, answered before and after, side by side."""
        table = Table("question", "before", "after", title="The champion's answers", show_lines=True)
        for row in rows:
            table.add_row(*(escape(row[key]) for key in ("question", "before", "after")))
        self.console.print(table)

    def times(self, stage_s: Mapping[str, float]) -> None:
        """Where the time went."""
        parts = ", ".join(f"{name} {seconds:.0f}" for name, seconds in stage_s.items() if name != "total")
        self.say(f"\nTook {stage_s['total']:.0f} s: {parts}.")

    def verdict(self, met: Sequence[Condition], paths: Sequence[str]) -> None:
        table = Table("", "what had to hold", title="Verdict")
        for condition in met:
            table.add_row("[green]yes[/]" if condition.met else "[red]NO[/]", escape(condition.words))
        self.console.print(table)
        for path in paths:
            self.say(f"  {path}")
        for condition in met:
            if not condition.met:
                self.console.print(f"[red]not met:[/] {escape(condition.words)}", soft_wrap=True)
