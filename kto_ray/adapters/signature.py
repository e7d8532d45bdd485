"""The signature of a manifest, which who may write where adapters lie cannot make. Pure.

HMAC-SHA256 (RFC 2104) over all of the manifest but the signature, in one form: sorted keys, no spaces, ASCII. It stands
within the manifest, so that it is published with it, last and at once. The manifest names the hashes of the files.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from typing import Any

SIGNATURE = "signature"
DOMAIN = b"kto_ray adapter manifest 1\n"  # the key signs nothing else under this head


def signed(manifest: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """The manifest with a signature by the first key; as it is where there is none."""
    return {**manifest, SIGNATURE: _of(manifest, keys[0])} if keys else dict(manifest)


def believed(manifest: Mapping[str, Any], keys: Sequence[str]) -> bool:
    """Whether one of the keys signed it. Each is tried, in a time that tells nothing of how near a guess came."""
    told = manifest.get(SIGNATURE)
    given = told.encode(errors="replace") if isinstance(told, str) else b""
    return any([hmac.compare_digest(given, _of(manifest, key).encode()) for key in keys])


def _of(manifest: Mapping[str, Any], key: str) -> str:
    rest = {name: value for name, value in manifest.items() if name != SIGNATURE}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hmac.new(key.encode(), DOMAIN + text.encode(), hashlib.sha256).hexdigest()
