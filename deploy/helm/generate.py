"""Generates parts of the chart: the schema of `config` from the service's settings, and the rules of one job.

python deploy/helm/generate.py [--check]
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

from chatrpc_server.settings import Settings

DEPLOY = Path(__file__).parents[1]
CHART = DEPLOY / "helm/chatrpc"
SCHEMA = CHART / "values.schema.json"
# Settings that other values determine: see chatrpc.config in templates/_helpers.tpl.
OF_THE_CHART = {"listen", "health_listen", "metrics_listen", "tls", "api_key", "api_key_file"}


def config_schema() -> dict[str, Any]:
    """Return the JSON schema of `config`, in draft 7 without references and titles, which Helm 3 and 4 both accept."""
    whole = Settings.model_json_schema()
    schema = _plain(whole, whole["$defs"])
    # Templates read these, because the pod's grace period depends on them.
    schema["required"] = ["drain", "upstream"]
    schema["properties"]["drain"]["required"] = ["delay_seconds", "grace_seconds"]
    return _with_nulls(schema)


def _with_nulls(schema: dict[str, Any]) -> dict[str, Any]:
    """Allow null for all that is optional, because the service accepts it and a YAML key without a value means it."""
    for each in schema.get("anyOf", ()):
        _with_nulls(each)
    for each in schema.get("patternProperties", {}).values():
        _allow_null(_with_nulls(each))
    for name, each in schema.get("properties", {}).items():
        _with_nulls(each)
        if name not in schema.get("required", ()):
            _allow_null(each)
    return schema


def _allow_null(schema: dict[str, Any]) -> None:
    if "anyOf" not in schema:
        schema["type"] = [schema["type"], "null"]
    elif {"type": "null"} not in schema["anyOf"]:
        schema["anyOf"].append({"type": "null"})
    if "enum" in schema:
        schema["enum"].append(None)


def _plain(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        return _plain(definitions[schema["$ref"].removeprefix("#/$defs/")], definitions)
    plain = {key: value for key, value in schema.items() if key not in ("$defs", "title", "default")}
    if "properties" in schema:
        chosen = {name: each for name, each in schema["properties"].items() if name not in OF_THE_CHART}
        plain["properties"] = {name: _plain(each, definitions) for name, each in chosen.items()}
    if "anyOf" in schema:
        plain["anyOf"] = [_plain(each, definitions) for each in schema["anyOf"]]
    if "patternProperties" in schema:  # a map of groups, by the pattern of their names
        groups = schema["patternProperties"].items()
        plain["patternProperties"] = {pattern: _plain(each, definitions) for pattern, each in groups}
        plain["additionalProperties"] = False
    if "items" in schema:
        plain["items"] = _plain(schema["items"], definitions)
    return plain


# Metric names in the rules, with their matchers if there are any. No PromQL function has such a name.
_SELECTOR = re.compile(r"\b((?:chatrpc|grpc|gen_ai|process|scrape)[_:][\w:]+|up\b)(?:\{(.*?)\})?")


def rules_of_a_job(text: str) -> str:
    """Return the rules limited to one job. The chart replaces `<job>` with the release's job.

    Otherwise two releases would record the same series, and each alert would fire twice.
    """
    rules = yaml.safe_load(text)
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule["expr"] = _SELECTOR.sub(_of_a_job, rule["expr"])
    return yaml.dump(rules, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


def _of_a_job(selector: re.Match[str]) -> str:
    others = re.sub(r'\bjob="[^"]*",? ?', "", selector[2] or "")
    matchers = 'job="<job>"' + (f", {others}" if others else "")
    return f"{selector[1]}{{{matchers}}}"


class _Dumper(yaml.SafeDumper):
    """Dumper that writes texts of several lines as blocks."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def generated() -> dict[Path, str]:
    """Return the text of each generated file."""
    schema = json.loads(SCHEMA.read_text())
    schema["properties"]["config"] = config_schema()
    return {
        SCHEMA: json.dumps(schema, indent=2, ensure_ascii=False) + "\n",
        **{
            CHART / "files/rules" / path.name: rules_of_a_job(path.read_text())
            for path in (DEPLOY / "prometheus/rules").glob("*.yaml")
        },
    }


def main() -> None:
    """Write the files, or check them."""
    stale = [path for path, text in generated().items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.relative_to(DEPLOY.parent)}: differs from its source; run make chart")
        sys.exit(bool(stale))
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(generated()[path])


if __name__ == "__main__":
    main()
