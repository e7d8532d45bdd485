"""What is due to go by the config's `retention`, and how it goes: texts of old completions to archives, then rows of
snapshots, weights, checkpoints and answered requests. What serves or is in progress keeps all that it needs.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from kto_ray.config import Config
from kto_ray.config.retention import RetentionSection
from kto_ray.data import archive
from kto_ray.data.manifest import load_manifest
from kto_ray.data.tombstone import Tombstone, purge_rows, read_tombstone
from kto_ray.paths import ADAPTER_WEIGHTS, Paths, filesystem, join
from kto_ray.store import Store, adapters, archives, requests, rollouts, rounds, snapshots
from kto_ray.store.archives import Changed, Old
from kto_ray.store.custody import Lost, Work, custody

DAY_S = 86400.0
PAGE = 2000  # completions that are looked at at once
ROWS = 500  # of an archive, whose rows change in one transaction
START = (0.0, "")


@dataclass(frozen=True, slots=True)
class Kept:
    """How much went. `after` is where the walk over completions goes on, `START` when it came to its end."""

    completions: int = 0
    snapshots: int = 0
    adapters: int = 0
    trainings: int = 0
    requests: int = 0
    after: tuple[float, str] = START


@dataclass(frozen=True, slots=True)
class Needed:
    """What serves or is in progress."""

    snapshots: frozenset[str]
    adapters: frozenset[str]
    run: str | None  # of a training


# ---- what is due


def archived_before(section: RetentionSection, judged: bool, now: float) -> float:
    """The time (seconds since the epoch) before which a completion's texts go; before all times where they stay."""
    days = section.judged_days if judged else section.completions_days
    return float("-inf") if days is None else now - days * DAY_S


def due(section: RetentionSection, found: Iterable[Old], now: float, testing: str | None) -> list[Old]:
    """Of some completions those whose texts go. Those of the A/B test `testing` stay: their labels are its votes."""
    return [
        old
        for old in found
        if not old.archived
        and old.created_at < archived_before(section, old.judged, now)
        and (old.rollout is None or old.rollout != testing)
    ]


def beyond(newest: int | None, every: Sequence[str], needed: Collection[str]) -> list[str]:
    """Of names, oldest first, those that are not among the newest and that nothing needs."""
    return [] if newest is None else [name for name in every[: max(len(every) - newest, 0)] if name not in needed]


# ---- how it goes


def keep(
    store: Store, config: Config, now: float, after: tuple[float, str] = START, until: float = float("inf")
) -> Kept:
    """Do what is due, the completions behind `after` as far as one comes before `until` (of `time.monotonic`).

    Every step is small: no writer waits for all of it. Killed at any point, the next call goes on.

    Raises:
        Busy: a snapshot is being sealed, or somebody erased, or has taken the files while this stood still (`Lost`);
            nothing is lost by waiting.
        OSError: a file could not be written or deleted, such as on a full disk; what was not done is still due.
    """
    section, kept = config.retention, Kept(after=after)
    with custody(store, Work.ARCHIVING, patience_s=0) as files, files.naming() as tx:
        archive.sweep(config.home, archives.every(tx))
    times = [archived_before(section, judged, now) for judged in (False, True)]
    while max(times) > 0:
        kept = _page(store, config, kept, max(times), now)
        if kept.after == START or time.monotonic() > until:
            break
    serving = _needed(store, config)
    return replace(
        kept,
        snapshots=_snapshots(store, config, serving, now),
        adapters=_adapters(store, config, serving),
        trainings=_trainings(config, serving, now),
        requests=_requests(store, section, now),
    )


def _page(store: Store, config: Config, kept: Kept, than: float, now: float) -> Kept:
    """The next completions of the walk."""
    with store.read() as tx:
        page = archives.older(tx, than, kept.after, PAGE)
        test = rollouts.live(tx)
    found = due(config.retention, page, now, test.id if test else None)
    moved = 0
    for begin in range(0, len(found), ROWS):
        moved += _archive(store, config, found[begin : begin + ROWS], now)
    after = (page[-1].created_at, page[-1].id) if len(page) == PAGE else START
    return replace(kept, completions=kept.completions + moved, after=after)


def _archive(store: Store, config: Config, found: Sequence[Old], now: float) -> int:
    """Publish last: the file with its hash, then the rows. Killed between, the file is one that no row names."""
    unjudged = [old.id for old in found if not old.judged]
    with custody(store, Work.ARCHIVING, patience_s=0) as files:
        with store.read() as tx:
            whole = archives.whole(tx, [old.id for old in found])
        if not whole:
            return 0
        made = archive.write(config.home, whole, now)
        try:
            with files.naming() as tx:
                archives.move(tx, made, [completion.id for completion in whole], unjudged)
        except Changed:
            archive.delete(made)
            return 0
        except Lost:
            archive.delete(made)
            raise
    return len(whole)


def _needed(store: Store, config: Config) -> Needed:
    with store.read() as tx:
        served = set(adapters.aliases(tx, config.base_name).values())
        current, test = rounds.current(tx), rollouts.live(tx)
        state = current.state if current is not None else None
        served |= {getattr(state, "adapter", None) or ""} | ({test.champion, test.challenger} if test else set())
        tried = [one.tried for one in current.candidates] if current is not None else []
        served |= {each.adapter or "" for each in tried if each is not None}  # the best of which is loaded again
        made_of = {version.snapshot or "" for version in adapters.every(tx) if version.name in served}
    return Needed(
        snapshots=frozenset(made_of | {getattr(state, "snapshot", None) or ""}),
        adapters=frozenset(served),
        run=current.run if current else None,
    )


def _snapshots(store: Store, config: Config, serving: Needed, now: float) -> int:
    """Their rows go, their manifests stay, and the index, so that lineage can still be asked."""
    with store.read() as tx:
        every = dict(snapshots.every(tx))
    old = beyond(config.retention.snapshots, list(every), serving.snapshots)
    gone = [name for name in old if read_tombstone(every[name]) is None]
    for name in gone:
        with custody(store, Work.ARCHIVING, patience_s=0):
            purge_rows(every[name], load_manifest(every[name]), Tombstone(None, {}, now))
    return len(gone)


def _adapters(store: Store, config: Config, serving: Needed) -> int:
    """Their weights go, their manifests and rows stay."""
    with store.read() as tx:
        every = {version.name: version.uri for version in adapters.every(tx)}
    gone = 0
    for name in beyond(config.retention.adapters, list(every), serving.adapters):
        fs, weights = filesystem(join(every[name], ADAPTER_WEIGHTS))
        if fs.exists(weights):
            fs.rm(weights)
            gone += 1
    return gone


def _trainings(config: Config, serving: Needed, now: float) -> int:
    """Folders of runs in which nothing was written for long: whoever trains writes at every step."""
    days = config.retention.training_days
    fs, folder = filesystem(Paths(config.home).training())
    if days is None or not fs.exists(folder):
        return 0
    gone = 0
    for part in (str(part) for part in fs.ls(folder, detail=False)):
        files = fs.find(part)
        newest = max((fs.modified(file).timestamp() for file in files), default=0.0)
        if part.rsplit("/", 1)[-1] != serving.run and newest < now - days * DAY_S:
            fs.rm(part, recursive=True)
            gone += 1
    return gone


def _requests(store: Store, section: RetentionSection, now: float) -> int:
    gone = 0
    while section.requests_days is not None:
        with store.write() as tx:
            some = requests.forget(tx, now - section.requests_days * DAY_S, ROWS)
        gone += some
        if some < ROWS:
            break
    return gone
