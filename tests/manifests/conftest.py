"""What is rendered once, and copies to break; without kubectl or the schemas both are left out."""

from __future__ import annotations

from pathlib import Path

import pytest
from k8s_documents import Document, render

from tests.support.manifests import ROOT, Tree, copy_tree, tools_are_here

WHY = "needs kubectl on the PATH and the KubeRay JSON Schemas in ../shared/schemas"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    if not tools_are_here():
        pytest.skip(WHY)
    return copy_tree(tmp_path)


@pytest.fixture(scope="session")
def services() -> dict[str, Document]:
    """The RayService of each target; not to be changed."""
    if not tools_are_here():
        pytest.skip(WHY)
    targets = ("k8s/base", "k8s/overlays/cpu", "k8s/overlays/single-gpu")
    return {target: next(d for d in render(ROOT / target) if d["kind"] == "RayService") for target in targets}
