"""Standard output is for a command's result alone."""

from __future__ import annotations

import json
import time

import pytest
from ray._private.utils import push_error_to_driver
from ray._private.worker import global_worker

from kto_ray.cli.common import ray_up, tell
from kto_ray.config import load_config

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]


def test_the_raylets_warnings_do_not_mix_with_a_result(capsys: pytest.CaptureFixture[str]) -> None:
    said, out, deadline = "", "", time.monotonic() + 20
    with ray_up(load_config()):
        push_error_to_driver(global_worker, "worker_pool_large", "many worker processes have been started")
        while "many worker processes" not in said + out and time.monotonic() < deadline:
            time.sleep(0.1)
            captured = capsys.readouterr()
            said, out = said + captured.err, out + captured.out
    tell({"adapter": "policy@v1"}, as_json=True)
    assert "many worker processes" in said
    assert json.loads(out + capsys.readouterr().out) == {"adapter": "policy@v1"}
