"""Object storage that says, by one error, that it cannot be reached: botocore's own errors are no OSError."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import ClientError
from botocore.exceptions import BotoCoreError, ParamValidationError
from s3fs import S3FileSystem

from kto_ray.paths import StorageAway

BUSY = (408, 429)  # HTTP: request timeout, too many requests


class S3(S3FileSystem):
    """s3fs but for its faults. `_call_s3` is behind all it does; the two others read on by themselves."""

    async def _call_s3(self, method: str, *lists: Any, **named: Any) -> Any:
        with _told(method):
            return await super()._call_s3(method, *lists, **named)

    async def _cat_file(self, path: str, *settings: Any, **more: Any) -> Any:
        with _told(path):
            return await super()._cat_file(path, *settings, **more)

    async def _get_file(self, rpath: str, *settings: Any, **more: Any) -> Any:
        with _told(rpath):
            return await super()._get_file(rpath, *settings, **more)


@contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except (ParamValidationError, StorageAway):
        raise
    except (BotoCoreError, ClientError, ConnectionError, TimeoutError) as error:
        raise StorageAway(f"object storage cannot be reached ({what}): {type(error).__name__}: {error}") from error
    except OSError as error:
        if _status(error) in BUSY or _status(error) >= 500:
            raise StorageAway(f"object storage does not serve ({what}): {error}") from error
        raise


def _status(error: OSError) -> int:
    """The HTTP status behind an error of s3fs; 0 where there is none."""
    response = getattr(error.__cause__, "response", None) or {}
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
