"""What is shown of a URI, and who enters a home."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from kto_ray.paths import make_private, without_passwords


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql+psycopg://kto:p@ss@db:5432/kto", "postgresql+psycopg://***@db:5432/kto"),
        ("postgresql://db/kto?user=a&password=b&sslmode=x", "postgresql://db/kto?user=a&password=***&sslmode=x"),
        (
            "https://host/x?X-Amz-Signature=abc&X-Amz-Credential=d",
            "https://host/x?X-Amz-Signature=***&X-Amz-Credential=***",
        ),
        ("at http://a:b@c/d, then http://e:f@g/h", "at http://***@c/d, then http://***@g/h"),
        ("s3://bucket/prefix", "s3://bucket/prefix"),
        ("https://host/adapters/policy@v1-3fa9c1", "https://host/adapters/policy@v1-3fa9c1"),
        ("policy@v1-3fa9c1 of ann@example.org", "policy@v1-3fa9c1 of ann@example.org"),
        ("sqlite:////tmp/mlflow.db", "sqlite:////tmp/mlflow.db"),
    ],
)
def test_a_uri_is_shown_without_its_password(text: str, shown: str) -> None:
    assert without_passwords(text) == shown


def test_a_new_home_is_private_and_an_old_one_stays(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir(mode=0o750)
    before = os.umask(0o002)
    try:
        make_private(str(tmp_path / "old"))
        make_private(str(tmp_path / "new"))
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("old", "new")]
    assert modes == [0o750, 0o700]
