"""Builds a small valid instance of a JSON Schema, for tool arguments and structured output.

Supports the common keywords of tool and output schemas: type, properties, required, enum, const, default, items,
prefixItems, bounds, formats, local $ref, allOf, anyOf, oneOf. Ignores pattern, not, if/then/else, uniqueItems and
dependencies.
"""

import math
from typing import Any

# Schemas come from callers and can describe infinite or huge values, so these limits bound the work per instance.
_MOST_NODES = 10_000
_DEEPEST = 50
_LONGEST_TEXT = 100_000
# Below this depth only required parts are built, so that optional recursion (a tree's children) terminates.
_SHALLOW = 5

_FORMATS = {
    "date": "2000-01-01",
    "date-time": "2000-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "duration": "PT0S",
    "email": "echo@example.com",
    "hostname": "example.com",
    "ipv4": "127.0.0.1",
    "ipv6": "::1",
    "uri": "https://example.com",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
_TYPE_BY_KEYWORD = {
    "properties": "object",
    "required": "object",
    "additionalProperties": "object",
    "items": "array",
    "prefixItems": "array",
    "minimum": "number",
    "maximum": "number",
}


class NoInstanceError(ValueError):
    """A schema without an instance: it is invalid, contradictory or infinite."""


def instance(schema: Any) -> Any:
    """Return a small instance of `schema`, always the same one.

    Raises NoInstanceError.
    """
    return _Builder(schema).build(schema, 0)


class _Builder:
    """The builder of one instance, with the root schema for `$ref` and the number of nodes so far."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._nodes = 0

    def build(self, schema: Any, depth: int) -> Any:
        if depth > _DEEPEST:
            raise NoInstanceError("the schema nests too deeply")
        schema = self._flatten(_as_object(schema))
        for given in ("const", "default"):
            if given in schema:
                return schema[given]
        for listed in ("enum", "examples"):
            if isinstance(schema.get(listed), list) and schema[listed]:
                return schema[listed][0]
        return self._of_type(_type_of(schema), schema, depth)

    def _of_type(self, kind: Any, schema: dict[str, Any], depth: int) -> Any:
        match kind:
            case "object":
                return self._object(schema, depth)
            case "array":
                return self._array(schema, depth)
            case "string":
                return _string(schema)
            case "integer" | "number":
                return _number(schema, whole=kind == "integer")
            case "boolean":
                return False
            case "null":
                return None
        raise NoInstanceError(f"{kind!r} is not valid under any of the given schemas")

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        properties = _object_at(schema, "properties")
        others = schema.get("additionalProperties")
        names = schema.get("required")
        if not isinstance(names, list):
            names = list(properties) if depth < _SHALLOW else []
        unnamed = others if isinstance(others, dict) else True
        return {str(name): self.build(properties.get(str(name), unnamed), depth + 1) for name in names}

    def _array(self, schema: dict[str, Any], depth: int) -> list[Any]:
        first = schema.get("prefixItems")
        items = schema.get("items", True)
        values = [self.build(item, depth + 1) for item in first] if isinstance(first, list) else []
        length = _count_at(schema, "minItems", 1 if "items" in schema and not values and depth < _SHALLOW else 0)
        length = min(length, _count_at(schema, "maxItems", length))
        while len(values) < length:
            values.append(self.build(items, depth + 1))
        return values

    def _flatten(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Merge `$ref`, `allOf`, and the first choice of `anyOf` and `oneOf` into the schema."""
        while True:
            self._count_node()
            others = dict(schema)
            if isinstance(reference := others.pop("$ref", None), str):
                schema = _merge(self._resolve(reference), others)
            elif isinstance(parts := others.pop("allOf", None), list):
                schema = others
                for part in parts:
                    schema = _merge(schema, self._flatten(_as_object(part)))
            elif isinstance(parts := others.pop("anyOf", others.pop("oneOf", None)), list) and parts:
                schema = _merge(others, _as_object(parts[0]))
            else:
                return others

    def _resolve(self, reference: str) -> dict[str, Any]:
        if not reference.startswith("#"):
            raise NoInstanceError(f"reference {reference!r} is not local")
        target = self._root
        for step in reference[1:].split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, dict) or step not in target:
                raise NoInstanceError(f"reference {reference!r} cannot be resolved")
            target = target[step]
        return _as_object(target)

    def _count_node(self) -> None:
        self._nodes += 1
        if self._nodes > _MOST_NODES:
            raise NoInstanceError("the schema has no small instance")


def _as_object(schema: Any) -> dict[str, Any]:
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise NoInstanceError(f"a schema is an object or true, not {type(schema).__name__}")
    return schema


def _merge(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    merged = {**left, **right}
    if "properties" in left and "properties" in right:
        merged["properties"] = {**_object_at(left, "properties"), **_object_at(right, "properties")}
    if isinstance(left.get("required"), list) and isinstance(right.get("required"), list):
        merged["required"] = list(dict.fromkeys(map(str, left["required"] + right["required"])))
    return merged


def _type_of(schema: dict[str, Any]) -> Any:
    kind = schema.get("type")
    if isinstance(kind, list) and kind:
        return kind[0]
    return kind or next((guess for key, guess in _TYPE_BY_KEYWORD.items() if key in schema), "string")


def _string(schema: dict[str, Any]) -> str:
    if (example := _FORMATS.get(str(schema.get("format")))) is not None:
        return example
    shortest = _count_at(schema, "minLength", 0)
    if shortest > _LONGEST_TEXT:
        raise NoInstanceError("minLength is too large")
    return "text".ljust(shortest, ".")[: _count_at(schema, "maxLength", _LONGEST_TEXT)]


def _number(schema: dict[str, Any], *, whole: bool) -> int | float:
    """Return the first candidate within the bounds: 0, 1, or a number at or next to a bound."""
    candidates: list[float] = [0, 1]
    bounds = [_number_at(schema, key) for key in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")]
    step = _number_at(schema, "multipleOf")
    for bound in bounds:
        if bound is None:
            continue
        candidates += (bound, math.ceil(bound), math.floor(bound), math.floor(bound) + 1, math.ceil(bound) - 1)
        if step:
            candidates += (math.ceil(bound / step) * step, (math.floor(bound / step) + 1) * step)
    candidates += [(left + right) / 2 for left in bounds for right in bounds if left is not None and right is not None]
    for candidate in candidates:
        if _fits(candidate, bounds, step, whole=whole):
            return int(candidate) if whole else candidate
    raise NoInstanceError("no number lies within the bounds")


def _fits(number: float, bounds: list[float | None], step: float | None, *, whole: bool) -> bool:
    least, above, most, below = bounds
    return (
        (least is None or number >= least)
        and (above is None or number > above)
        and (most is None or number <= most)
        and (below is None or number < below)
        and (not step or number % step == 0)
        and (not whole or number == int(number))
    )


def _number_at(schema: dict[str, Any], key: str) -> float | None:
    value = schema.get(key)
    # bool is an int in Python, and `exclusiveMinimum: true` is valid in JSON Schema draft 4 (2013).
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _count_at(schema: dict[str, Any], key: str, default: int) -> int:
    value = _number_at(schema, key)
    return default if value is None else max(0, int(value))


def _object_at(schema: dict[str, Any], key: str) -> dict[str, Any]:
    value = schema.get(key)
    return value if isinstance(value, dict) else {}
