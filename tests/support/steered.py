"""A whole service that a test scales and deploys anew while it serves; as a module, its process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from kto_ray.config import load_config
from tests.support.nodes import ROOT
from tests.support.service import QUICK, Service, wait_ready


@dataclass
class Steered(Service):
    """A running service, with a line to the process that deploys it."""

    settings: tuple[str, ...]
    folder: Path
    told: int = 0

    def scale(self, replicas: int) -> None:
        """Have so many policies from now on; those that there are stay as they are."""
        self.tell("scale", replicas)

    def deploy(self, *settings: str, timeout_s: float = 600.0) -> None:
        """Deploy the application with these settings over its own, replica by replica, and wait until it runs."""
        self.tell("deploy", [*self.settings, *settings], timeout_s=timeout_s)

    def tell(self, what: str, argument: Any, timeout_s: float = 60.0) -> None:
        self.told += 1
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([self.told, what, argument]) + "\n")
        self.process.stdin.flush()
        self.wait(f"{what} {argument}", lambda: True if f"done {self.told}\n" in self.log else None, timeout_s)

    @property
    def log(self) -> str:
        return (self.folder / "serve.log").read_text()

    @property
    def logs(self) -> str:
        """What the service's processes wrote to their logs."""
        [session] = [line for line in self.log.splitlines() if line.startswith("session ")]
        folder = Path(session.removeprefix("session "), "logs")
        files = [*folder.glob("worker-*.err"), *folder.glob("serve/*.log")]
        return "".join(file.read_text(errors="replace") for file in files)

    @property
    def live(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.client.get("/readyz").json()["replicas"]
        return found

    def processes(self, title: str) -> list[psutil.Process]:
        """Those of the service's processes whose title has these words."""
        every = psutil.Process(self.process.pid).children(recursive=True)
        return [one for one in every if title in _title(one)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""


@contextmanager
def steered(folder: Path, port: int, *overrides: str) -> Iterator[Steered]:
    """Start the service, wait until it is ready, and stop it as a service manager does, unless it has ended."""
    settings = (f"home={folder}/home", f"http.port={port}", *QUICK, *overrides)
    command = [sys.executable, "-m", "tests.support.steered", json.dumps(settings)]
    with (folder / "serve.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, text=True
        )
        url = f"http://127.0.0.1:{port}"
        try:
            wait_ready(process, url, folder / "serve.log")
            yield Steered(url, load_config(None, settings), process, settings, folder)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(150)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        told = (folder / "serve.log").read_text()
        assert process.returncode == 0, f"{process.returncode}:\n{told[-3000:]}"


def main() -> None:
    import ray
    from ray import serve

    from kto_ray.app import APPLICATION, application, running

    serve.run = partial(serve.run, external_scaler_enabled=True)
    settings = tuple(json.loads(sys.argv[1]))
    try:
        with running(load_config(None, settings), partial(print, flush=True)):
            print("session", ray._private.worker._global_node.get_session_dir_path(), flush=True)
            for line in sys.stdin:
                number, what, argument = json.loads(line)
                if what == "scale":
                    _scale(argument)
                else:
                    serve.run(application(load_config(None, tuple(argument))), name=APPLICATION, route_prefix="/")
                print("done", number, flush=True)
    except KeyboardInterrupt:  # asked to end
        pass


def _scale(replicas: int) -> None:
    import ray
    from ray.serve._private.common import DeploymentID
    from ray.serve.context import _get_global_client

    from kto_ray.app import APPLICATION

    controller = _get_global_client()._controller
    ray.get(controller.update_deployment_replicas.remote(DeploymentID("Policy", APPLICATION), replicas))


if __name__ == "__main__":
    main()
