"""kto_ray's own application on a cluster of several nodes, with PostgreSQL and S3 that can be away. The engine alone is
a double: `speaking_engine`."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import yaml

from kto_ray.bench.postgres import Server
from kto_ray.config import Config, load_config
from kto_ray.records.keys import Scope
from kto_ray.store import keys, open_store
from tests.support.network import Proxy, proxied
from tests.support.nodes import ROOT, Network, missing, network
from tests.support.service import QUICK
from tests.support.streams import Endpoints
from tests.support.tiny import tiny_model

T = TypeVar("T")

DRAIN_S = 150  # as the manifests have it
SCOPES = (Scope.CHAT, Scope.FEEDBACK, Scope.ADMIN)
BUCKET = "kto"
POLICY_CPUS = 2  # that one of its replicas holds
ON_NODES = [pytest.mark.fault, pytest.mark.skipif(missing() is not None, reason=str(missing()))]


@dataclass
class Cluster:
    """The nodes, what they need, and the application on them."""

    nodes: Network
    store: Proxy
    storage: Proxy
    config: Config
    database_url: str  # past the proxy
    folder: Path
    key: str = ""
    revision: int = 0
    _document: dict[str, Any] = field(default_factory=lambda: yaml.safe_load((ROOT / "deploy/serve.yaml").read_text()))

    def migrate(self) -> None:
        """As the Job does, past the proxy."""
        sets = ("--config", str(self.folder / "config.yaml"), "--set", f"store_url={self.database_url}")
        subprocess.run([sys.executable, "-m", "kto_ray", "migrate", *sets], cwd=ROOT, check=True, timeout=120)

    def make_key(self) -> None:
        store = open_store(self.database_url)
        with store.write() as tx:
            _, self.key = keys.create(tx, "tests", SCOPES, True, self.config.salt, time.time())
        store.close()

    def deploy(self, config: Config | None = None) -> None:
        """Write the config's file and raise the revision in the Serve config, as operators do."""
        self.config, self.revision = config or self.config, self.revision + 1
        text = yaml.safe_dump(self.config.model_dump(mode="json"))
        (self.folder / "config.yaml").write_text(text)
        document = copy.deepcopy(self._document)
        [application] = document["applications"]
        application["args"]["config"] = str(self.folder / "config.yaml")
        application["runtime_env"]["env_vars"]["KTO_RAY_CONFIG_REVISION"] = str(self.revision)
        self._serve("PUT", json=document).raise_for_status()

    def state(self) -> dict[str, Any]:
        """Serve's word on the application; empty where it has none yet."""
        told: dict[str, Any] = self._serve("GET").raise_for_status().json()["applications"].get("kto-ray", {})
        return told

    def replicas(self, deployment: str) -> list[dict[str, Any]]:
        told: list[dict[str, Any]] = self.state().get("deployments", {}).get(deployment, {}).get("replicas", [])
        return told

    def wait_running(self, timeout_s: float = 300.0) -> None:
        """Until all its replicas are of the last revision, and no others are left."""

        def settled() -> bool | None:
            state = self.state()
            said = {name: one["message"] for name, one in state.get("deployments", {}).items()}
            assert state.get("status") != "DEPLOY_FAILED", (state.get("message"), said)
            if state.get("status") != "RUNNING":
                return None
            found = state["deployments"].values()
            return True if all(len(one["replicas"]) == one["target_num_replicas"] for one in found) else None

        time.sleep(1.0)  # the application is of the old revision until Serve has looked at the new one
        self.wait("the application runs", settled, timeout_s)

    def wait(self, what: str, found: Callable[[], T | None], timeout_s: float) -> T:
        deadline = time.monotonic() + timeout_s
        while True:
            if (value := found()) is not None:
                return value
            assert time.monotonic() < deadline, (
                f"{what}: not within {timeout_s:.0f} s; {json.dumps(self.state())[:3000]}"
            )
            time.sleep(0.3)

    @cached_property
    def endpoints(self) -> Endpoints:
        """Of the nodes that serve, once some do."""
        return Endpoints({name: node.ip for name, node in self.nodes.nodes.items() if name.startswith("serve")})

    def chat(self, question: str = "Hi", user: str = "ann") -> httpx.Response:
        body = {"messages": [{"role": "user", "content": question}], "user": user, "max_tokens": 64}
        return self.post("/v1/chat/completions", body)

    def get(self, path: str) -> Any:
        return self._ask("GET", path).raise_for_status().json()

    def post(self, path: str, body: Any = None) -> httpx.Response:
        return self._ask("POST", path, json=body)

    def on_nodes(self, pool: str) -> set[str]:
        """What Ray says has run on the nodes of a pool: names of tasks and of actors' classes."""
        nodes = {node["node_id"] for node in self._ray("nodes") if node["labels"].get("kto-ray/pool") == pool}
        tasks = {task["func_or_class_name"] for task in self._ray("tasks") if task["node_id"] in nodes}
        return tasks | {actor["class_name"] for actor in self._ray("actors") if actor["node_id"] in nodes}

    def _ray(self, what: str) -> list[dict[str, Any]]:
        told = self._dashboard("GET", f"/api/v0/{what}?limit=10000&detail=true").raise_for_status().json()
        found: list[dict[str, Any]] = told["data"]["result"]["result"]
        return found

    def _ask(self, method: str, path: str, **named: Any) -> httpx.Response:
        opened = {"Authorization": f"Bearer {self.key}"}
        return httpx.request(method, f"{self.endpoints.any()}{path}", headers=opened, timeout=60, **named)

    def _serve(self, method: str, **named: Any) -> httpx.Response:
        return self._dashboard(method, "/api/serve/applications/", **named)

    def _dashboard(self, method: str, path: str, **named: Any) -> httpx.Response:
        opened = {"Authorization": f"Bearer {self.nodes.token}"}
        return httpx.request(method, f"http://{self.nodes.head.ip}:8265{path}", headers=opened, timeout=60, **named)


@contextmanager
def cluster(
    folder: Path, server: Server, pools: dict[str, str], *settings: str, cpus: int = 2 * POLICY_CPUS
) -> Iterator[Cluster]:
    """Nodes, an empty bucket and an empty database without a schema; nothing is deployed yet.

    Args:
        pools: the names of the nodes beside the head, and their pools.
        settings: of the config, over what suits a test.
        cpus: of each of these nodes.
    """
    name = f"cluster_{os.getpid()}"
    database_url = server.empty(name)
    port = int(database_url.partition("@")[2].partition("/")[0].partition(":")[2])
    with network() as nodes, _moto() as s3_port, _away(nodes, port, s3_port) as (store, storage):
        nodes.env |= {
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(DRAIN_S),
            "RAYLLM_VLLM_ENGINE_CLS": "tests.support.speaking.Speaking",
            "AWS_ENDPOINT_URL": f"http://{nodes.here}:{storage.port}",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_REGION": "us-east-1",
        }
        nodes.start("head", "head", 0, {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"})
        for node, pool in pools.items():
            nodes.start(node, pool, cpus)
        given = (
            f"home=s3://{BUCKET}/home",
            "embedded=false",
            f"store_url=postgresql+psycopg://kto@{nodes.here}:{store.port}/{name}",
            "salt=a salt of this test",
            f"model.id={tiny_model(folder / 'model')}",
            "ray={address: auto, pool_label: kto-ray/pool}",
            f"http={{host: 0.0.0.0, spool: {folder}/spool}}",
            "serve.surge=true",
            "serve.gateways=2",
        )
        config = load_config(None, (*QUICK, *given, *settings))
        made = Cluster(nodes, store, storage, config, database_url, folder)
        (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
        yield made
        made.endpoints.close()


@contextmanager
def _away(nodes: Network, store_port: int, storage_port: int) -> Iterator[tuple[Proxy, Proxy]]:
    with proxied("127.0.0.1", store_port, nodes.here) as store, proxied("127.0.0.1", storage_port, nodes.here) as s3:
        yield store, s3


@contextmanager
def _moto() -> Iterator[int]:
    """S3 in this process, with our bucket; its port on loopback."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    try:
        signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/s3/aws4_request"}
        httpx.put(f"http://127.0.0.1:{port}/{BUCKET}", headers=signed).raise_for_status()
        yield port
    finally:
        server.stop()
