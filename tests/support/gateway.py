"""The gateway in a process of its own, over the stand-in of the engine, to be killed; as a module, that process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]


class Gateway:
    """A process that may be killed and started again, on the same port."""

    def __init__(self, store_url: str, home: Path, port: int) -> None:
        self._asked = {"store_url": store_url, "home": str(home), "port": port}
        self.url = f"http://127.0.0.1:{port}"
        self._log = (home / "gateway.log").open("a")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.support.gateway", json.dumps(self._asked)]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=self._log, stderr=self._log)

    def wait(self, timeout_s: float = 60) -> None:
        """Until it answers."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            assert self._process is not None and self._process.poll() is None, "the gateway ended; see gateway.log"
            try:
                httpx.get(f"{self.url}/healthz", timeout=2)
                return
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError("the gateway does not answer")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """As a service manager does."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(60) in (0, -signal.SIGTERM)
        self._log.close()


def main() -> None:
    import sqlalchemy as sa
    import uvicorn

    from kto_ray.config import Config
    from kto_ray.serve.gateway.api import build
    from kto_ray.store import open_store
    from kto_ray.store.database import Patience
    from tests.support.engine import StandIn

    asked = json.loads(sys.argv[1])
    config = Config(home=asked["home"], store_url=asked["store_url"])
    while True:
        try:
            store = open_store(config.database_url, Patience(statement_s=1, lock_s=0.3))
            app = build(config, store, StandIn().generate)
            break
        except (ValueError, sa.exc.SQLAlchemyError) as error:  # the store is away: Serve would start it again
            print(type(error).__name__, str(error).partition("\n")[0], flush=True)
            time.sleep(0.1)
    uvicorn.run(app, host="127.0.0.1", port=asked["port"], log_level="warning")


if __name__ == "__main__":
    main()
