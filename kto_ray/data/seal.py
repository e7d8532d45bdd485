"""What the loop calls to make a snapshot of the stored feedback: `snapshot.freeze` on key ranges of the store."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

from kto_ray.config import Config
from kto_ray.data.snapshot import freeze
from kto_ray.model import resolve_model
from kto_ray.paths import reach
from kto_ray.records.examples import Example
from kto_ray.records.snapshots import SnapshotManifest
from kto_ray.store import Store, archives, feedback, labels
from kto_ray.store.custody import Work, custody

logger = logging.getLogger(__name__)


def seal(config: Config, until: int | None = None, tell: Callable[[str], None] = logger.info) -> SnapshotManifest:
    """Freeze the stored feedback into a snapshot: up to the number `until` in the order of the store, or all of it.

    Nothing behind the manifest's `newest_seq` is read, however much arrives meanwhile: the same store with that number
    as `until` gives the same snapshot later, but for what has become of feedback up to it: what was withdrawn, held,
    erased or archived since is left out then, for it never trains; and what waited for its completion and was joined
    since, or was held and is released since, comes in. Ray must be up; `tell` hears the stages.

    Raises:
        ValueError: what the store holds cannot be trained on (see `freeze`).
        Lost: somebody was erased meanwhile, so nothing is published; call it again.
    """
    store = Store(config.database_url)
    try:
        with custody(store, Work.SEALING, tell=tell) as files:

            def begin(stage: str) -> None:
                files.check()  # not only at the end of all the work
                tell(stage)

            reach(config.home)
            begin("count")
            with store.read() as tx:
                ranges = labels.key_ranges(tx, config.data.rows_per_range)
                out = feedback.left_out(tx, until)
                archived = archives.left_out(tx, out.newest_seq)
            dropped = {**asdict(out), "archived": archived}
            del dropped["newest_at"], dropped["newest_seq"]
            read = partial(read_examples, config.database_url, until=out.newest_seq)
            model, newest = resolve_model(config.model), (out.newest_at, out.newest_seq)
            return freeze(config, model, ranges, read, dropped, *newest, begin, files.publishing)
    finally:
        store.close()


def read_examples(url: str, keys: tuple[str, str | None], until: int | None = None) -> list[Example]:
    """The labelled examples of one key range of completions, by the feedback up to the number `until`."""
    store = Store(url)
    with store.read() as tx:
        found = labels.examples(tx, keys, until)
    store.close()
    return found
