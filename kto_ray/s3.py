"""Object storage that says, by one error, that it cannot be reached: botocore's own errors are no OSError."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import ClientError
from botocore.exceptions import BotoCoreError, ParamValidationError
from s3fs import S3FileSystem

from kto_ray.paths import StorageAway


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
    except ParamValidationError:
        raise
    except OSError as error:  # HTTP 500 and 503, as s3fs has them
        if isinstance(error, StorageAway) or error.errno not in (errno.EREMOTEIO, errno.EBUSY):
            raise
        raise StorageAway(f"object storage does not serve ({what}): {error}") from error
    except (BotoCoreError, ClientError) as error:
        raise StorageAway(f"object storage cannot be reached ({what}): {type(error).__name__}: {error}") from error
