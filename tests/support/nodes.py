"""Ray nodes as a cluster's pods: each in namespaces of this machine, with an address, processes and a host name of its
own, on a bridge of their own; started, as KubeRay does, by `ray start --block`, and ended by a signal to that."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path

ROOT = Path(__file__).parents[2]
NEEDED = ("ip", "unshare", "setpriv")
OBJECT_STORE = 100_000_000
STOP_S = 20.0
NUMBERS = count(1)  # of nodes of this process: what the kernel has yet to take away keeps its name
LOOPBACK_UP = ("link", "set", "lo", "up")


@cache
def missing() -> str | None:
    """Why there can be no such nodes here."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    lacking = [name for name in NEEDED if shutil.which(name) is None]
    if lacking:
        return f"there is no {', '.join(lacking)}"
    probe = subprocess.run(["unshare", "--net", "--pid", "--fork", "--mount-proc", "true"], capture_output=True)
    return None if probe.returncode == 0 else f"namespaces cannot be made: {probe.stderr.decode().strip()}"


@dataclass
class Node:
    """A pod: its Ray node, and where its logs and its cache are."""

    name: str
    ip: str
    space: str  # its network namespace
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def main(self) -> int:
        """`ray start`, the first process there, as this machine numbers it."""
        (child,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(child)

    @property
    def log(self) -> str:
        return (self.folder / "node.log").read_text()

    def terminate(self) -> None:
        """As kubelet does."""
        os.kill(self.main, signal.SIGTERM)

    def wait(self, timeout_s: float) -> float:
        """Until it has ended; how long that took."""
        began = time.monotonic()
        self.process.wait(timeout_s)
        return time.monotonic() - began

    def kill(self) -> None:
        """All of it at once."""
        with suppress(ProcessLookupError, FileNotFoundError, ValueError):
            os.kill(self.main, signal.SIGKILL)  # the kernel then ends all others of its namespace
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass
class Network:
    """A bridge, and the nodes on it. Its name and those of all that it has hold this process's id."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)  # of every node
    nodes: dict[str, Node] = field(default_factory=dict)
    token: str = field(default_factory=lambda: secrets.token_hex(32))

    def __post_init__(self) -> None:
        self.bridge = f"kb{os.getpid()}"
        self.subnet = _free_subnet()
        self._made = 0
        self._undo = ExitStack()

    @property
    def here(self) -> str:
        """This machine's address, as the nodes reach it."""
        return f"{self.subnet}.1"

    @property
    def head(self) -> Node:
        return self.nodes["head"]

    def up(self) -> None:
        self._undo.callback(_ip, "link", "del", self.bridge, check=False)
        _ip("link", "add", self.bridge, "type", "bridge")
        _ip("addr", "add", f"{self.here}/24", "dev", self.bridge)
        _ip("link", "set", self.bridge, "up")

    def down(self) -> None:
        self._undo.close()

    def start(self, name: str, pool: str, cpus: int, env: Mapping[str, str] | None = None) -> Node:
        """A new node, once Ray is up there."""
        self._made += 1
        ip, number = f"{self.subnet}.{9 + self._made}", next(NUMBERS)
        space = f"kto{os.getpid()}-{number}"
        self._make(space, f"kv{os.getpid()}n{number}"[:15], ip, name)
        folder = self.folder / f"{self._made}"
        (folder / "cache").mkdir(parents=True)
        address = ["--head", "--port=6379", "--dashboard-host=0.0.0.0"]
        if "head" in self.nodes:
            address = [f"--address={self.head.ip}:6379"]
        ray = [
            f"{Path(sys.executable).parent}/ray",
            "start",
            *address,
            f"--node-ip-address={ip}",
            f"--labels=kto-ray/pool={pool}",
            f"--num-cpus={cpus}",
            f"--temp-dir={folder}/ray",
            f"--object-store-memory={OBJECT_STORE}",
            "--dashboard-agent-listen-port=52365",
            "--block",
        ]
        inside = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts"]
        command = ["setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", space, *inside]
        shell = f"hostname {name}; {' '.join(ray)}"
        with (folder / "node.log").open("wb") as log:
            process = subprocess.Popen(
                [*command, "bash", "-c", shell],
                env={**os.environ, **self._env(folder), **(env or {})},
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        node = self.nodes[name] = Node(name, ip, space, folder, process)
        self._undo.callback(node.kill)
        _until_up(node)
        return node

    def _env(self, folder: Path) -> dict[str, str]:
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "PYTHONPATH": str(ROOT),
            "KTO_RAY_CACHE": f"{folder}/cache",
            **self.env,
        }

    def _make(self, space: str, outside: str, ip: str, host: str) -> None:
        etc = Path("/etc/netns", space)
        self._undo.callback(_ip, "netns", "del", space, check=False)
        _ip("netns", "add", space)
        self._undo.callback(shutil.rmtree, etc, ignore_errors=True)
        etc.mkdir(parents=True)
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n{ip} {host}\n")
        _ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("link", "set", outside, "master", self.bridge, "up")
        for words in (("addr", "add", f"{ip}/24", "dev", "eth0"), ("link", "set", "eth0", "up"), LOOPBACK_UP):
            _ip("-n", space, *words)


@contextmanager
def network(env: Mapping[str, str] | None = None) -> Iterator[Network]:
    """An empty one; its nodes end with it."""
    with tempfile.TemporaryDirectory(prefix="kn", ignore_cleanup_errors=True) as folder:  # short: sockets lie there
        made = Network(Path(folder), dict(env or {}))
        try:
            made.up()
            yield made
        finally:
            made.down()


def _until_up(node: Node, timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while "Ray runtime started" not in node.log:
        assert node.process.poll() is None, f"{node.name} ended with {node.process.returncode}:\n{node.log[-3000:]}"
        assert time.monotonic() < deadline, f"{node.name} is not up:\n{node.log[-3000:]}"
        time.sleep(0.2)


def _free_subnet() -> str:
    """The first three numbers of addresses that nobody here has."""
    taken = _ip("-4", "-o", "addr", "show")
    numbers = ((os.getpid() + i) % 12_000 for i in range(12_000))
    return next(net for net in (f"10.{200 + n // 250}.{n % 250}" for n in numbers) if f" {net}." not in taken)


def _ip(*words: str, check: bool = True) -> str:
    told = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=30)
    assert not check or told.returncode == 0, f"ip {' '.join(words)}: {told.stderr}"
    return told.stdout
