"""The chart of deploy/helm: its value files, and what Helm makes of them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
HELM = ROOT / "deploy" / "helm"
CHART = HELM / "vita-audio"
CASES = ("cpu", "gpu", "gpu-keda")

Document = dict[str, Any]


def case(name: str) -> Document:
    return yaml.safe_load((CHART / "ci" / f"{name}.yaml").read_text())


def changed(values: Document, path: str, value: Any) -> Document:
    """A copy of `values` with another value at ``a.b.c``."""
    made = copy.deepcopy(values)
    *folders, last = path.split(".")
    place = made
    for folder in folders:
        place = place.setdefault(folder, {})
    place[last] = value
    return made


def render(chart: Any, values: Document, name: str = "voice") -> dict[tuple[str, str], Document]:
    """(kind, name) -> manifest."""
    files = chart.render(values, name=name, namespace="prod")
    texts = [text for file, text in files.items() if file.endswith(".yaml")]
    documents = [document for text in texts for document in yaml.safe_load_all(text) if document]
    made = {(document["kind"], document["metadata"]["name"]): document for document in documents}
    assert len(made) == len(documents)
    return made


def one(manifests: dict[tuple[str, str], Document], kind: str) -> Document:
    (found,) = [document for (each, _), document in manifests.items() if each == kind]
    return found


def pod(manifests: dict[tuple[str, str], Document]) -> Document:
    return one(manifests, "Deployment")["spec"]["template"]["spec"]


def server_of(manifests: dict[tuple[str, str], Document]) -> Document:
    (container,) = pod(manifests)["containers"]
    return container


def flags(arguments: list[str]) -> dict[str, str]:
    """``--name=value`` -> value."""
    return dict(argument.removeprefix("--").split("=", 1) for argument in arguments if "=" in argument)
