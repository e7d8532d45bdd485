"""Copies of what `make k8s-check` reads, to break."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import k8s_check

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = ROOT.parent / "shared" / "schemas"
READ = ("k8s", "configs", "kto_ray/store/migrations", "kto_ray/app.py")  # by the check, besides what follows
DEPLOY = ("serve.yaml", "compose.yaml", "Dockerfile")
CACHES = shutil.ignore_patterns("__pycache__")


def tools_are_here() -> bool:
    """kubectl, and KubeRay's schemas beside the project."""
    return shutil.which("kubectl") is not None and SCHEMAS.is_dir()


@dataclass(frozen=True)
class Tree:
    """A copy of what the check reads."""

    root: Path

    def edit(self, file: str, old: str, new: str) -> None:
        text = (self.root / file).read_text()
        assert old in text, f"{file} no longer holds {old!r}"
        (self.root / file).write_text(text.replace(old, new))

    def errors(self, only: Collection[str] | None = None) -> list[str]:
        """Of these targets; None: of all."""
        return k8s_check.check_tree(self.root, SCHEMAS, only).errors


def copy_tree(to: Path) -> Tree:
    for path in (*READ, *(f"deploy/{name}" for name in DEPLOY)):
        (to / path).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / path).is_dir():
            shutil.copytree(ROOT / path, to / path, ignore=CACHES)
        else:
            shutil.copy(ROOT / path, to / path)
    return Tree(to)
