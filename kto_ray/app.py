"""Wiring: the Serve application of gateway, policy and controller, and the embedded way to run it."""

from __future__ import annotations

import errno
import io
import logging
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import httpx

from kto_ray.cluster import start_ray
from kto_ray.config import Config, load_config
from kto_ray.paths import is_local, make_private
from kto_ray.store import keys, leases, store_of

log = logging.getLogger(__name__)

APPLICATION = "kto-ray"  # its name in Serve
READY_TIMEOUT_S = 600.0


def build(args: dict[str, Any]) -> Any:
    """The Serve application; the import path that Serve configs name.

    Args:
        args: `config` (a YAML file) and `set` (a list of a.b=c overrides), both optional.
    """
    from kto_ray.evaluate.suites import guard_items

    config = load_config(args.get("config"), tuple(args.get("set", ())))
    guard_items(config.gate)  # faulty suites are told here: in a round they would cost it its labels
    store_of(config, wait_s=math.inf).close()  # Serve builds an application once: one that failed stays failed
    return application(config)


def application(config: Config) -> Any:
    from ray import serve

    from kto_ray.loop.actor import Controller
    from kto_ray.serve.gateway.replica import Gateway
    from kto_ray.serve.policy.replica import ONE_LOOP, Policy, llm_config

    if is_local(config.home):
        make_private(config.home)
    options = Policy.get_deployment_options(llm_config(config, config.model.id))
    bound = serve.deployment(Policy, name="Policy").options(**options).bind(config)
    selector = config.pool("serve")  # without it an actor of zero CPUs may land on the head, whose outage chat survives
    light: dict[str, Any] = {"num_cpus": 0, **({"label_selector": selector} if selector else {})}
    controller = serve.deployment(
        Controller,
        name="Controller",
        num_replicas=1,
        ray_actor_options=light,
        health_check_period_s=5,
        graceful_shutdown_timeout_s=1,
    ).bind(config, bound)
    gateway = serve.deployment(
        Gateway,
        name="Gateway",
        num_replicas=config.serve.gateways,
        max_surge_percent=100,  # it needs no more than memory: the new ones are there before the old ones go
        graceful_shutdown_timeout_s=config.serve.grace_s,
        max_ongoing_requests=1024,  # well above limits.chats_in_all, so that others are not kept waiting by chats
        max_queued_requests=1024,
        ray_actor_options={**light, "runtime_env": {"env_vars": ONE_LOOP}},
    )
    return gateway.bind(config, bound, controller)


def check_port(config: Config) -> None:
    """Raises:
    ValueError: nobody can listen there; the message says why.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.http.host, config.http.port))
        except OSError as error:
            where, port = config.http.host, config.http.port
            if error.errno == errno.EADDRINUSE:
                raise ValueError(
                    f"http.port is {port}, which is taken on {where} ({error.strerror}); "
                    "stop what listens there, or use --set http.port=N"
                ) from None
            raise ValueError(
                f"http.host is {where!r} and http.port {port}, where this machine cannot listen ({error.strerror}); "
                "name one of its own addresses, and a port that you may use (from 1024 on)"
            ) from None


def check_home(config: Config) -> None:
    """Raises:
    ValueError: another service on this machine keeps its state in the same store.
    """
    store = store_of(config)
    with store.read() as tx:
        holder = leases.holder(tx, leases.CONTROLLER)
    store.close()
    if holder is not None and holder.node == os.uname().nodename and Path(f"/proc/{holder.pid}").exists():
        raise ValueError(
            f"home is {config.home!r}, whose store another service uses (process {holder.pid}); "
            "stop that one, or name another folder with --set home=DIR"
        )


def check_keys(config: Config) -> None:
    """Raises:
    ValueError: others reach the service, and nothing would tell who they are.
    """
    if config.http.loopback or config.http.proxy_secret is not None:
        return
    store = store_of(config)
    with store.read() as tx:
        known = keys.every(tx)
    store.close()
    if not known:
        raise ValueError(
            f"http.host is {config.http.host!r}, which others reach, and there is no API key; make one with "
            "`kto-ray keys create NAME --scope chat`, set http.proxy_secret where an authenticating proxy stands in "
            "front, or use http.host=127.0.0.1"
        )


@contextmanager
def running(config: Config, tell: Callable[[str], None]) -> Iterator[str]:
    """Start the whole service, wait until it is ready, yield its base URL, and shut it down. `tell` hears the stages.

    SIGTERM, by which Docker and systemd end a service, then does as Ctrl-C does: Ray's own handler would end its
    processes in the middle of requests. To be called from the main thread.

    Raises:
        ValueError: the port or the home is taken, the model or a suite is not there or the store cannot be opened.
        RuntimeError: the service did not become ready; the message is Serve's.
    """
    from kto_ray.evaluate.suites import guard_items
    from kto_ray.model import is_prepared, resolve_model

    guard_items(config.gate)
    check_port(config)
    store_of(config).close()  # fails here, where a person sees it
    if config.ray.address is None:
        check_home(config)
    check_keys(config)
    if not is_prepared(config.model):
        tell("preparing the embedded model, once")
    resolve_model(config.model)
    tell("Ray")
    start_ray(config)
    signal.signal(signal.SIGTERM, _as_ctrl_c)
    import ray
    from ray import serve

    up = False
    try:
        serve.start(
            http_options={"host": config.http.host, "port": config.http.port}, logging_config={"log_level": "WARNING"}
        )
        tell("vLLM and the model, gateway, controller")
        app = application(config)
        serve.run(app, name=APPLICATION, route_prefix="/")
        _wait_ready(config.http.url)
        up = True
        yield config.http.url
    finally:
        if not up:
            tell("stopping")
        # Serve kills its controller in the middle of calls, and Ray's listener tells of each on standard output.
        with redirect_stdout(io.StringIO()):
            try:
                if up:
                    _drain(config.serve.grace_s)
            finally:
                serve.shutdown()
                if config.ray.address is None:
                    ray.shutdown()


def _drain(grace_s: float) -> None:
    """Let answers end before Serve is shut down, which first of all kills the proxies that they go through. A Serve
    that does not answer is not waited for any longer."""
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    def drained() -> None:
        try:
            serve.delete(APPLICATION, _blocking=False)
            while APPLICATION in serve.status().applications:
                time.sleep(0.2)
        except (RayError, RayServeException) as error:
            log.warning("answers may be cut off, for Serve is gone already: %s", error)

    waits = threading.Thread(target=drained, daemon=True)
    waits.start()
    waits.join(grace_s)


def _as_ctrl_c(*_: Any) -> None:
    """By SIGINT, which asyncio turns into a cancellation; but a shell's background jobs ignore that one."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)


def _wait_ready(url: str) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise RuntimeError(
        f"{url}/readyz was not ready within {READY_TIMEOUT_S:.0f} s; see the logs in /tmp/ray/session_latest"
    )
