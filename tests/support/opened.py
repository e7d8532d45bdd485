"""The gateway's app with settings of a test's own, and what opens it: keys, and what a proxy sends."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kto_ray.config import Config
from kto_ray.records.keys import Scope
from kto_ray.serve.gateway.api import build
from kto_ray.store import Store, keys
from tests.api.conftest import Api
from tests.support.engine import StandIn
from tests.support.local import local

SECRET = "0123456789abcdef-of-the-proxy"


@contextmanager
def serving(store: Store, folder: Path, **settings: Any) -> Iterator[Api]:
    config = Config.model_validate({"home": str(folder), **settings})
    engine = StandIn()
    app = build(config, store, engine.generate)
    with local(app) as client:
        yield Api(client, store, engine, config, app.state.door)


def token(api: Api, *scopes: Scope, name: str = "app", vouches: bool = False) -> str:
    with api.store.write() as tx:
        _, made = keys.create(tx, name, scopes, vouches, api.config.salt, time.time())
    api.door.viewer.refresh()
    return made


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def by_proxy(user: str | None = "ann", secret: str = SECRET) -> dict[str, str]:
    return {"X-Kto-Proxy-Secret": secret, **({"X-Forwarded-User": user} if user is not None else {})}
