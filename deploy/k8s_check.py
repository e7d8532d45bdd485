"""Check k8s/ and deploy/ without a cluster: render with kubectl, validate, and compare what must agree.

    python deploy/k8s_check.py [--root .] [--schemas DIR]

KubeRay documents are held to strict JSON Schemas of KubeRay's resource definitions and to the rules that its operator
checks beyond them, all others to Kubernetes' own schemas; the pods that KubeRay would build, and those of Jobs, to pod
security "restricted"; the Serve config to Ray's schema classes (which ignore unknown fields by themselves) and to
deploy/serve.yaml; the kto-ray config to `kto_ray.config` and to the pools; references to what they name; the README's
table of edits to what KubeRay's hash makes of them; the image to hadolint. Exit 0 only if all of it holds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import jsonschema
import yaml
from k8s_config import configmap_errors
from k8s_documents import CheckError, Document, unknown
from k8s_edits import TARGETS, readme_errors
from k8s_image import compose_errors, dockerfile_errors, image_environment
from k8s_model import annotation_errors, model_errors
from k8s_network import network_errors
from k8s_plain import image_errors, kubernetes_errors, namespace_errors, plain_errors
from k8s_rayservice import built_errors, rayservice_errors
from k8s_references import Around
from k8s_serve import serve_errors
from k8s_targets import Target, documents_of, targets

KUBERAY = ("RayService", "RayJob", "RayCluster")
COPIES = {"k8s/base/config.yaml": "configs/production.yaml"}


@dataclass
class Report:
    """One line per document, and every error with the document it belongs to."""

    lines: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def add(self, what: str, errors: list[str]) -> None:
        self.lines.append(f"{'FAIL' if errors else 'ok  '}  {what}")
        self.lines += [f"      {error}" for error in errors]
        self.errors += [f"{what}: {error}" for error in errors]


def check_tree(root: Path, schemas: Path, only: Collection[str] | None = None) -> Report:
    """Check the tree at `root` (which holds k8s/, deploy/, configs/ and kto_ray/).

    Args:
        only: the targets to render; None: all of them.

    Raises:
        CheckError: kubectl, hadolint or the schemas are missing.
    """
    if shutil.which("kubectl") is None:
        raise CheckError("kubectl is not on the PATH; it renders the kustomizations (kubectl 1.31 or later)")
    if not (schemas / "rayservice-v1.schema.json").is_file():
        raise CheckError(f"no KubeRay JSON Schemas in {schemas} (no rayservice-v1.schema.json); pass --schemas DIR")
    report = Report()
    serve = yaml.safe_load((root / "deploy/serve.yaml").read_text())
    report.add("deploy/serve.yaml", serve_errors(serve, root))
    report.add("deploy/Dockerfile", dockerfile_errors(root))
    report.add("deploy/compose.yaml", compose_errors(root))
    for copy, original in COPIES.items():
        report.add(copy, same(root, copy, original))
    report.add("k8s/namespace.yaml", namespace_errors(root))
    services: dict[str, Document] = {}
    for target in targets(root):
        if only is None or target.name in only:
            documents = check_target(target, serve, root, schemas, report)
            services.update((target.name, document) for document in documents if document["kind"] == "RayService")
    if set(TARGETS) <= set(services):
        report.add("k8s/README.md", readme_errors(root, services))
    return report


def check_target(target: Target, serve: Document, root: Path, schemas: Path, report: Report) -> list[Document]:
    """The target's documents of the right shape."""
    try:
        documents = documents_of(target, root)
    except CheckError as error:
        report.add(f"{target.name}/kustomization.yaml", [str(error)])
        return []
    wrong = [shape_errors(document, schemas) for document in documents]
    # References are followed only between documents of the right shape; the others are told.
    sound = [document for document, errors in zip(documents, wrong, strict=True) if not errors]
    patches = [error for folder in target.folders for error in patch_errors(root / folder)]
    report.add(f"{target.name}/kustomization.yaml", patches + image_errors(sound))
    report.add(f"{target.name}  NetworkPolicies, all together", network_errors(sound))
    around = Around(sound, (root / "k8s/README.md").read_text(), image_environment(root))
    for document, errors in zip(documents, wrong, strict=True):
        title = f"{target.name}  {document.get('kind')} {document.get('metadata', {}).get('name')}"
        report.add(title, errors or document_errors(document, around, serve, root))
    for service in around.named("RayService").values():
        for group, pod, errors in built_errors(service, around):
            report.add(f"{target.name}  Pod of {group}, as KubeRay builds it", kubernetes_errors(pod) + errors)
    return sound


def same(root: Path, copy: str, original: str) -> list[str]:
    """kustomize reads nothing outside its own folder, so some documents exist twice; they must not drift apart."""
    left, right = (yaml.safe_load((root / path).read_text()) for path in (copy, original))
    return [] if left == right else [f"differs from {original}; they must be the same document"]


def patch_errors(target: Path) -> list[str]:
    """A merge patch on a RayService replaces workerGroupSpecs as a whole, so only JSON 6902 patches may touch it."""
    errors = []
    for patch in yaml.safe_load((target / "kustomization.yaml").read_text()).get("patches", []):
        text = patch["patch"] if "patch" in patch else (target / patch["path"]).read_text()
        content = yaml.safe_load(text)
        kind = patch.get("target", {}).get("kind") or (content.get("kind") if isinstance(content, dict) else None)
        if kind in KUBERAY and not isinstance(content, list):
            errors.append(f"the patch of {kind} must be a JSON 6902 list: a merge patch replaces workerGroupSpecs")
    return errors


def shape_errors(document: Document, schemas: Path) -> list[str]:
    kind = document.get("kind")
    if kind == "Secret":
        return ["a Secret with its values must not be in the repository; refer to one that the cluster holds"]
    missing = [f"field {key!r} is missing" for key in ("apiVersion", "kind", "metadata") if key not in document]
    if missing or kind not in KUBERAY:
        return missing or kubernetes_errors(document)
    schema = json.loads((schemas / f"{kind.lower()}-v1.schema.json").read_text())
    errors = jsonschema.Draft202012Validator(schema).iter_errors(document)
    found = [f"{error.json_path.removeprefix('$.')}: {_schema_message(error)}" for error in errors]
    return found if found or "spec" in document else ["field 'spec' is missing"]


def _schema_message(error: jsonschema.ValidationError) -> str:
    if error.validator != "additionalProperties":
        return str(error.message)
    known = list(error.schema["properties"])
    return "; ".join(unknown(key, known) for key in error.instance if key not in known)


def document_errors(document: Document, around: Around, serve: Document, root: Path) -> list[str]:
    kind = document["kind"]
    if kind == "RayService":
        return rayservice_errors(document, around, serve, root) + model_errors(around.documents)
    if kind in KUBERAY:
        return [f"only a RayService is expected here, got a {kind}"]
    if kind == "ConfigMap":
        return configmap_errors(document, around.documents) + annotation_errors(document)
    return plain_errors(document, around, root)


def main() -> int:
    root = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description="Check k8s/ and deploy/ without a cluster.")
    parser.add_argument("--root", type=Path, default=root, help="the repository")
    parser.add_argument("--schemas", type=Path, default=root.parent / "shared/schemas", help="KubeRay JSON Schemas")
    arguments = parser.parse_args()
    try:
        report = check_tree(arguments.root.resolve(), arguments.schemas)
    except CheckError as error:
        print(f"k8s-check: {error}", file=sys.stderr)
        return 1
    print("\n".join(report.lines))
    print(f"{len(report.errors)} errors" if report.errors else "k8s-check: every document is valid")
    return 1 if report.errors else 0


if __name__ == "__main__":
    sys.exit(main())
