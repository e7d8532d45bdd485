"""What the controller does beside the loop, now and then: retention, in a thread of its own."""

from __future__ import annotations

import logging
import threading
import time

import sqlalchemy as sa

from kto_ray.config import Config
from kto_ray.store import Store
from kto_ray.store.custody import Busy

log = logging.getLogger(__name__)

EVERY_S = 600.0
LIMIT_S = 60.0  # of one walk over completions, which then goes on where it was


class Upkeep:
    def __init__(self, config: Config) -> None:
        self._config = config
        self._thread: threading.Thread | None = None
        self._due = time.monotonic()
        self._after = (0.0, "")

    def look(self) -> None:
        """Begin what is due, where there is something to do and it does not go on already."""
        waits = time.monotonic() < self._due or (self._thread is not None and self._thread.is_alive())
        if self._config.retention.keeps_all or waits:
            return
        self._due = time.monotonic() + EVERY_S
        self._thread = threading.Thread(target=self.run, daemon=True)
        self._thread.start()

    def run(self) -> None:
        from kto_ray.provenance.retention import keep  # pyarrow and Ray Data, which the loop does without

        store = Store(self._config.database_url)
        try:
            kept = keep(store, self._config, time.time(), self._after, time.monotonic() + LIMIT_S)
            self._after = kept.after
            log.info("retention: %s", kept)
        except Busy:
            return
        except (OSError, sa.exc.SQLAlchemyError) as error:
            log.error("retention could not do all that is due, and tries again: %s", error)
        finally:
            store.close()
