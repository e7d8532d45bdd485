"""Where it runs and where it listens: Ray and HTTP."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from kto_ray.config.base import Section


class RaySection(Section):
    address: str | None = None  # None starts a local cluster on loopback; "auto" joins the running one
    num_cpus: int = Field(6, ge=2)  # logical CPUs of the local cluster: what may run at once, not threads
    object_store_mb: int = Field(512, ge=80)
    # Node label whose values "serve" and "train" name the node pools; None: one pool for everything
    pool_label: str | None = Field(None, pattern=r"^[a-z0-9]([a-z0-9./-]*[a-z0-9])?$")


class HttpSection(Section):
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    # A local folder that outlives the gateways' processes: what is said while the store is away is kept there. None:
    # "spool" in a local home
    spool: str | None = None
    behind_proxy: bool = False  # required to listen beyond loopback: an authenticating proxy stands in front
    # Browsers' origins (https://chat.example) whose pages may call; none by default
    cors_origins: tuple[Annotated[str, Field(pattern=r"^https?://[^/\s*]+$")], ...] = ()

    @property
    def url(self) -> str:
        """The gateway's base URL, as this machine reaches it."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @model_validator(mode="after")
    def _loopback_without_keys(self) -> HttpSection:
        if self.host not in ("127.0.0.1", "::1", "localhost") and not self.behind_proxy:
            raise ValueError(
                f"host is {self.host!r}, but there are no API keys; use 127.0.0.1, "
                "or set http.behind_proxy: true where an authenticating proxy stands in front"
            )
        return self
