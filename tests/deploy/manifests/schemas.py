"""Schemas for kubeconform: schemas.py TARGET core BUNDLED VERSION ..., or schemas.py TARGET custom DEFINITIONS.

`core` are those that kubernetes-validate brings, of these versions of Kubernetes; `custom` are made of the definitions
(CRDs) that controller-gen wrote.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml


def core(target: Path, bundled: Path, *versions: str) -> None:
    """The same with references that begin where the file is, not at an address on the web."""
    for version in versions:
        folder = target / f"v{version}.0-strict"
        folder.mkdir(parents=True, exist_ok=True)
        for path in (bundled / f"v{version}.0-local-strict").glob("*.json"):
            schema = json.loads(path.read_text().replace('"/api/_definitions.json#', '"_definitions.json#'))
            schema.pop("$id", None)
            (folder / path.name).write_text(json.dumps(schema))


def custom(target: Path, definitions: Path) -> None:
    for path in definitions.glob("*.yaml"):
        spec = yaml.safe_load(path.read_text())["spec"]
        for version in spec["versions"]:
            schema = _strict(version["schema"]["openAPIV3Schema"])
            # Of every object the API server knows the metadata by itself.
            schema["properties"]["metadata"] = {"type": "object"}
            name = f"{spec['group']}_{spec['names']['singular']}_{version['name']}.json"
            (target / name).write_text(json.dumps(schema))


def _strict(schema: Any) -> Any:
    """The same, but what it does not name is an error."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


if __name__ == "__main__":
    _, target, kind, source, *versions = sys.argv
    if kind == "core":
        core(Path(target), Path(source), *versions)
    else:
        custom(Path(target), Path(source))
