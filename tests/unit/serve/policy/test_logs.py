"""Serve's log of a replica, when vLLM configures logging."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from logging.handlers import MemoryHandler, RotatingFileHandler
from pathlib import Path

import pytest

from kto_ray.serve.policy import logs


@pytest.fixture
def handler(tmp_path: Path) -> Iterator[MemoryHandler]:
    """As Serve sets one up in a replica: what it is told it writes at once."""
    made = MemoryHandler(1, target=RotatingFileHandler(tmp_path / "replica.log"), flushLevel=logging.ERROR)
    logger = logging.getLogger(logs.SERVE)
    logger.addHandler(made)
    yield made
    logger.removeHandler(made)


def the_engine_starts() -> None:
    from vllm.config.logging import LoggingConfig
    from vllm.logger import configure_logging

    before = logging.getLogRecordFactory()
    try:
        configure_logging(LoggingConfig())
    finally:
        logging.setLogRecordFactory(before)


def test_what_serve_says_is_written_after_the_engine_has_started(handler: MemoryHandler, tmp_path: Path) -> None:
    logger = logging.getLogger(logs.SERVE)
    logger.warning("before")
    with logs.kept():
        the_engine_starts()
        assert handler.target is None, "vLLM closes handlers no more: logs.kept is needed no longer"
        logger.warning("meanwhile")
    logger.warning("after")
    assert (tmp_path / "replica.log").read_text().split() == ["before", "meanwhile", "after"]
    assert not handler.buffer


def test_a_start_that_fails_leaves_serve_its_log(handler: MemoryHandler, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), logs.kept():
        the_engine_starts()
        raise RuntimeError("no memory")
    logging.getLogger(logs.SERVE).error("the replica could not start")
    assert "the replica could not start" in (tmp_path / "replica.log").read_text()
