"""Where it runs and where it listens: Ray and HTTP."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kto_ray.config.base import Section

LOOPBACK = ("127.0.0.1", "::1", "localhost")
NAME = r"[a-z0-9][a-z0-9._-]{0,63}"  # of a principal; without "/", which stands between it and its users
ORIGIN = r"^[a-z][a-z0-9+.-]*://[^/\s*?#@]+$"  # whole: a scheme, a host, a port
PerMinute = Annotated[int, Field(ge=1)] | None


class RaySection(Section):
    address: str | None = None  # None starts a local cluster on loopback; "auto" joins the running one
    num_cpus: int = Field(6, ge=2)  # logical CPUs of the local cluster: what may run at once, not threads
    object_store_mb: int = Field(512, ge=80)
    # Node label whose values "serve" and "train" name the node pools; None: one pool for everything
    pool_label: str | None = Field(None, pattern=r"^[a-z0-9]([a-z0-9./-]*[a-z0-9])?$")


class HttpSection(Section):
    """Where the gateway listens, and whom it believes.

    On loopback, without API keys, whoever is at this machine may do all. Beyond it, and wherever a key was ever made
    or `proxy_secret` is set, a request needs a key or comes from the proxy.
    """

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    # A local folder that outlives the gateways' processes: what is said while the store is away is kept there. None:
    # "spool" in a local home
    spool: str | None = None
    # What an authenticating proxy proves itself with, in the header X-Kto-Proxy-Secret; whom it names in
    # `proxy_user_header` may chat and give feedback, as the user `proxy_name`/NAME
    proxy_secret: str | None = Field(None, min_length=16, repr=False)
    proxy_user_header: str = Field("X-Forwarded-User", pattern=r"^[A-Za-z0-9-]+$")
    proxy_name: str = Field("proxy", pattern=f"^{NAME}$")
    # Origins whose pages may call, as browsers and desktop apps send them: https://chat.example, app://obsidian.md,
    # tauri://localhost, chrome-extension://ID; none by default
    cors_origins: tuple[Annotated[str, Field(pattern=ORIGIN)], ...] = ()

    @property
    def url(self) -> str:
        """The gateway's base URL, as this machine reaches it."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        return self.host in LOOPBACK


class LimitsSection(Section):
    """How much one gateway takes; beyond it a client is told when to come again. None: no limit.

    A key's are those of its principal, a user's those of a user whom an application or the proxy vouches for. Each
    gateway counts for itself, so with N gateways a client gets up to N times as much.
    """

    chats_per_minute: PerMinute = None
    chats_per_minute_of_user: PerMinute = 120
    feedback_per_minute: PerMinute = None
    feedback_per_minute_of_user: PerMinute = 240
    chats_at_once: int | None = Field(256, ge=1)  # of a principal, streams and others
    chats_in_all: int = Field(512, ge=1)  # in one gateway, of everybody, with those that wait for the engine
    # Requests whose body is still on its way; others wait for their turn, for some seconds. A body holds up to 4 MiB
    bodies_at_once: int = Field(32, ge=1)  # of a principal
    bodies_in_all: int = Field(256, ge=1)  # in one gateway
