"""Write schemas for kubeconform: schemas.py TARGET core BUNDLED VERSION ..., or schemas.py TARGET custom DEFINITIONS.

`core` converts kubernetes-validate's schemas of these versions of Kubernetes; `custom` converts the definitions (CRDs)
from controller-gen.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml


def core(target: Path, bundled: Path, *versions: str) -> None:
    """Write the schemas with references to the local file instead of an address on the web."""
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
            # The API server knows the metadata of every object itself.
            schema["properties"]["metadata"] = {"type": "object"}
            name = f"{spec['group']}_{spec['names']['singular']}_{version['name']}.json"
            (target / name).write_text(json.dumps(schema))


def _strict(schema: Any) -> Any:
    """Return the schema with every unnamed property as an error."""
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
