"""What k8s_check.py renders: the base, the overlays, and each of them with the components that go on top. Part of
k8s_check.py."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml
from k8s_documents import Document, render

BASE, CPU, ONE_GPU = "k8s/base", "k8s/overlays/cpu", "k8s/overlays/single-gpu"
CACHE, CACHE_TRAIN = "k8s/components/model-cache", "k8s/components/model-cache-train"
COMMIT = "kto-ray/model-commit"  # the annotation beside config.yaml


@dataclass(frozen=True)
class Target:
    """Documents that a person may apply.

    Attributes:
        name: as the check tells of it.
        resources: the folder that components are put on, or that is rendered as it is.
        components: on top, in this order.
        model_of: the folder whose config.yaml gives the model, where the one of `resources` has none to fetch.
    """

    name: str
    resources: str
    components: tuple[str, ...] = ()
    model_of: str | None = None

    @property
    def folders(self) -> tuple[str, ...]:
        """Whose patches are this target's own."""
        return self.components or (self.resources,)


COMBINED = (
    Target(CACHE, BASE, (CACHE, CACHE_TRAIN)),
    Target(f"{CACHE} on overlays/cpu", CPU, (CACHE, CACHE_TRAIN), model_of=BASE),
    Target(f"{CACHE} on overlays/single-gpu", ONE_GPU, (CACHE,)),
)


def targets(root: Path) -> list[Target]:
    """All of them; a new overlay is found by itself, a new component has to be named in COMBINED."""
    overlays = sorted((root / "k8s/overlays").iterdir())
    alone = [BASE, *(str(path.relative_to(root)) for path in overlays)]
    return [*(Target(name, name) for name in alone), *COMBINED]


def documents_of(target: Target, root: Path) -> list[Document]:
    """Rendered; with components by a kustomization like the one that a person would write.

    Raises:
        CheckError: kubectl refuses it.
    """
    if not target.components:
        return render(root / target.resources)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder).resolve()
        resources, *components = (
            os.path.relpath(root / path, place) for path in (target.resources, *target.components)
        )
        content: Document = {"resources": [resources], "components": components}
        if target.model_of is not None:
            content |= _with_model(root / target.resources, root / target.model_of, place)
        (place / "kustomization.yaml").write_text(yaml.safe_dump(content))
        return render(place)


def _with_model(own: Path, other: Path, place: Path) -> Document:
    """The config of `own` with the model of `other`, written to `place`, and the generator that takes it in."""
    config = yaml.safe_load((own / "config.yaml").read_text())
    config["model"] = yaml.safe_load((other / "config.yaml").read_text())["model"]
    (place / "config.yaml").write_text(yaml.safe_dump(config))
    (generator,) = yaml.safe_load((other / "kustomization.yaml").read_text())["configMapGenerator"]
    return {
        "configMapGenerator": [{**generator, "behavior": "replace"}],
        "generatorOptions": {"disableNameSuffixHash": True},
    }
