"""Check k8s/ and deploy/ without a cluster: render with kubectl, validate, and compare what must agree.

    python deploy/k8s_check.py [--root .] [--schemas DIR]

KubeRay documents are held to strict JSON Schemas of KubeRay's resource definitions and to the rules that its operator
checks beyond them; the Serve config to Ray's schema classes (which ignore unknown fields by themselves) and to
deploy/serve.yaml; the kto-ray config to `kto_ray.config`; references to what they name. Exit 0 only if all of it holds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import jsonschema
import yaml
from k8s_rayservice import NAME_LIMITS, Document, configmap_errors, rayservice_errors, serve_errors, unknown

# Fields of the plain Kubernetes documents that we use; a kind that is not here has to be added on purpose.
PLAIN_SPECS = {
    "PodDisruptionBudget": {"minAvailable", "maxUnavailable", "selector", "unhealthyPodEvictionPolicy"},
    "NetworkPolicy": {"podSelector", "policyTypes", "ingress", "egress"},
}


class CheckError(RuntimeError):
    """The check cannot run: no kubectl, no schemas, a kustomization that does not render."""


@dataclass
class Report:
    """One line per document, and every error with the document it belongs to."""

    lines: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def add(self, what: str, errors: list[str]) -> None:
        self.lines.append(f"{'FAIL' if errors else 'ok  '}  {what}")
        self.lines += [f"      {error}" for error in errors]
        self.errors += [f"{what}: {error}" for error in errors]


def check_tree(root: Path, schemas: Path) -> Report:
    """Check the tree at `root` (which holds k8s/, deploy/ and configs/).

    Raises:
        CheckError: kubectl or the schemas are missing.
    """
    if shutil.which("kubectl") is None:
        raise CheckError("kubectl is not on the PATH; it renders the kustomizations (kubectl 1.27 or later)")
    if not (schemas / "rayservice-v1.schema.json").is_file():
        raise CheckError(f"no KubeRay JSON Schemas in {schemas} (no rayservice-v1.schema.json); pass --schemas DIR")
    report = Report()
    serve = yaml.safe_load((root / "deploy/serve.yaml").read_text())
    report.add("deploy/serve.yaml", serve_errors(serve, root))
    report.add("k8s/base/config.yaml", same(root, "k8s/base/config.yaml", "configs/production.yaml"))
    for target in [root / "k8s/base", *sorted((root / "k8s/overlays").iterdir())]:
        check_target(target, serve, root, schemas, report)
    return report


def check_target(target: Path, serve: Document, root: Path, schemas: Path, report: Report) -> None:
    name = str(target.relative_to(root))
    try:
        documents = render(target)
    except CheckError as error:
        report.add(f"{name}/kustomization.yaml", [str(error)])
        return
    report.add(f"{name}/kustomization.yaml", patch_errors(target))
    wrong = [shape_errors(document, schemas) for document in documents]
    # References are followed only between documents of the right shape; the others have been told.
    sound = [document for document, errors in zip(documents, wrong, strict=True) if not errors]
    for document, errors in zip(documents, wrong, strict=True):
        title = f"{name}  {document.get('kind')} {document.get('metadata', {}).get('name')}"
        report.add(title, errors or document_errors(document, sound, serve, root))


def render(target: Path) -> list[Document]:
    result = subprocess.run(["kubectl", "kustomize", str(target)], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise CheckError(f"kubectl kustomize failed: {result.stderr.strip()}")
    return [document for document in yaml.safe_load_all(result.stdout) if document]


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
        if kind in NAME_LIMITS and not isinstance(content, list):
            errors.append(f"the patch of {kind} must be a JSON 6902 list: a merge patch replaces workerGroupSpecs")
    return errors


def shape_errors(document: Document, schemas: Path) -> list[str]:
    kind = document.get("kind")
    missing = [f"field {key!r} is missing" for key in ("apiVersion", "kind", "metadata") if key not in document]
    if missing or kind not in NAME_LIMITS:
        return missing
    schema = json.loads((schemas / f"{kind.lower()}-v1.schema.json").read_text())
    errors = jsonschema.Draft202012Validator(schema).iter_errors(document)
    found = [f"{error.json_path.removeprefix('$.')}: {_schema_message(error)}" for error in errors]
    return found if found or "spec" in document else ["field 'spec' is missing"]


def _schema_message(error: jsonschema.ValidationError) -> str:
    if error.validator != "additionalProperties":
        return str(error.message)
    known = list(error.schema["properties"])
    return "; ".join(unknown(key, known) for key in error.instance if key not in known)


def document_errors(document: Document, documents: list[Document], serve: Document, root: Path) -> list[str]:
    kind = document["kind"]
    clusters = [d["spec"]["rayClusterConfig"] for d in documents if d["kind"] == "RayService"]
    if kind in NAME_LIMITS:
        return rayservice_errors(document, documents, serve, root)
    if kind == "ConfigMap":
        return configmap_errors(document, clusters)
    if kind in PLAIN_SPECS:
        return plain_errors(document, PLAIN_SPECS[kind], clusters)
    if kind == "Secret":
        return ["a Secret with its values must not be in the repository; refer to one that the cluster holds"]
    return [f"kind {kind!r} is not known to this check; add it to PLAIN_SPECS in deploy/k8s_check.py"]


def plain_errors(document: Document, known: set[str], clusters: list[Document]) -> list[str]:
    """A budget or a network policy: known fields, and a selector that finds pods of the RayService."""
    spec = document.get("spec", {})
    errors = [f"spec: {unknown(key, sorted(known))}" for key in spec if key not in known]
    wanted = (spec.get("selector") or spec.get("podSelector") or {}).get("matchLabels")
    members = [g for c in clusters for g in [c["headGroupSpec"], *c.get("workerGroupSpecs", [])]]
    # KubeRay adds a group's labels to its pods.
    labels = [g["template"].get("metadata", {}).get("labels", {}) | g.get("labels", {}) for g in members]
    if labels and not any(wanted and wanted.items() <= pod.items() for pod in labels):
        errors.append(f"the selector {wanted} matches no pod of the RayService")
    if "maxUnavailable" in spec:
        errors.append("spec.maxUnavailable needs an owner with a scale subresource, which a RayCluster lacks")
    return errors


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
