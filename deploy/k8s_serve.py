"""The Serve config: Ray's schema classes, the import path, and `deployments` that restart nothing. Part of
k8s_check.py."""

from __future__ import annotations

import ast
import copy
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from k8s_documents import Document, unknown
from pydantic import BaseModel, ValidationError

ARGS = ["config", "set"]  # of kto_ray.app.build
DEPLOYMENTS = ["Controller", "Gateway", "Policy"]  # of kto_ray.app.application


def serve_errors(config: Any, root: Path) -> list[str]:
    """Ray's schema classes ignore fields they do not know, so those are told first, and then Ray's own errors."""
    from ray.runtime_env import RuntimeEnv
    from ray.serve.schema import ServeDeploySchema

    if not isinstance(config, dict):
        return ["must hold a Serve config"]
    errors = list(unknown_fields(config, ServeDeploySchema, ""))
    try:
        ServeDeploySchema.model_validate(config)
    except ValidationError as error:
        errors += [f"{'.'.join(map(str, e['loc']))}: {e['msg']}, got {e['input']!r}" for e in error.errors()]
        return errors
    for number, application in enumerate(config["applications"]):
        where = f"applications.{number}"
        environment = application.get("runtime_env", {})
        known = sorted(RuntimeEnv.known_fields)
        errors += [f"{where}.runtime_env: {unknown(key, known)}" for key in environment if key not in known]
        errors += import_errors(application["import_path"], where, root)
        errors += [f"{where}.args: {unknown(key, ARGS)}" for key in application.get("args", {}) if key not in ARGS]
        for deployment in application.get("deployments", []):
            errors += [f"{where}.deployments: {error}" for error in _deployment_errors(deployment)]
    return errors


def unknown_fields(value: Any, model: Any, path: str) -> Iterator[str]:
    """Every key below `value` that the pydantic model and its nested models do not have."""
    if isinstance(value, list):
        inner = typing.get_args(model)
        for number, item in enumerate(value):
            yield from unknown_fields(item, inner[0] if inner else None, f"{path}.{number}")
    elif isinstance(value, dict):
        classes = [m for m in (model, *typing.get_args(model)) if isinstance(m, type) and issubclass(m, BaseModel)]
        for key, item in value.items() if classes else ():
            known = {name: info for cls in classes for name, info in cls.model_fields.items()}
            where = f"{path}.{key}".strip(".")
            if key not in known:
                yield f"{path.strip('.') or 'top level'}: {unknown(key, sorted(known))}"
            else:
                yield from unknown_fields(item, known[key].annotation, where)


def import_errors(path: str, where: str, root: Path) -> list[str]:
    """The import path must lead to a function of this repository. Read, not imported: that would load the engine."""
    module, _, name = path.partition(":")
    file = root / (module.replace(".", "/") + ".py")
    if not file.is_file():
        return [f"{where}.import_path {path!r}: there is no {file.relative_to(root)}"]
    functions = [node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)]
    return [] if name in functions else [f"{where}.import_path {path!r}: {module} has no function {name!r}"]


def lightweight() -> set[str]:
    """The fields of a deployment that Serve changes without restarting a replica, as Ray's own classes say.

    Not request_router_config, nor autoscaling_config.policy: they are in the hash of the application's code
    (get_app_code_version), and so restart all of it.
    """
    from ray.serve._private.config import DeploymentConfig
    from ray.serve.schema import DeploymentSchema

    heavy = {"request_router_config"}
    for name, field in DeploymentConfig.model_fields.items():
        extra = field.json_schema_extra
        if not isinstance(extra, dict) or extra.get("update_type") in (None, "HeavyWeight"):
            heavy.add(name)
    return (set(DeploymentSchema.model_fields) & set(DeploymentConfig.model_fields)) - heavy


def _deployment_errors(deployment: Document) -> Iterator[str]:
    name = deployment["name"]
    if name not in DEPLOYMENTS:
        yield f"there is no deployment {name!r}; the application has {', '.join(DEPLOYMENTS)}"
    heavy = sorted(set(deployment) - lightweight() - {"name"})
    if isinstance(deployment.get("autoscaling_config"), dict) and "policy" in deployment["autoscaling_config"]:
        heavy.append("autoscaling_config.policy")
    for field in heavy:
        yield f"{name}.{field} restarts every replica, or replaces what the application sets; set it in kto_ray/"


def replicas_of(config: Document, name: str) -> int | None:
    """`num_replicas` of a deployment; None where the Serve config leaves it to the kto-ray config."""
    for application in config["applications"]:
        for deployment in application.get("deployments", []):
            if deployment["name"] == name:
                return typing.cast("int | None", deployment.get("num_replicas"))
    return None


def without_replicas(config: Document) -> Document:
    """The document but for the numbers of replicas, in which targets differ."""
    config = copy.deepcopy(config)
    for application in config.get("applications", []):
        for deployment in application.get("deployments", []):
            deployment.pop("num_replicas", None)
    return config
