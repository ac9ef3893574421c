"""The embedded upstream: an instance for a JSON schema."""

import json
from typing import Any

import pytest

from chatrpc_echo.schema_instances import NoInstanceError, instance

NODE = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": []}
TREE = {"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#"}}}}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({}, "text"),
        (True, "text"),
        ({"type": "object"}, {}),
        ({"type": "null"}, None),
        ({"type": "boolean"}, False),
        ({"type": ["string", "null"]}, "text"),
        ({"enum": ["b", "a"]}, "b"),
        ({"const": {"k": 1}}, {"k": 1}),
        ({"type": "string", "default": "d"}, "d"),
        ({"type": "string", "minLength": 6}, "text.."),
        ({"type": "string", "maxLength": 2}, "te"),
        ({"type": "string", "format": "date"}, "2000-01-01"),
        ({"type": "integer", "minimum": 3}, 3),
        ({"type": "integer", "exclusiveMinimum": 3}, 4),
        ({"type": "integer", "maximum": -2}, -2),
        ({"type": "integer", "minimum": 7, "multipleOf": 5}, 10),
        ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, 0.5),
        ({"type": "array"}, []),
        ({"type": "array", "items": {"type": "integer"}}, [0]),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 3}, [0, 0, 0]),
        ({"type": "array", "items": {"type": "integer"}, "maxItems": 0}, []),
        ({"prefixItems": [{"const": 1}, {"const": 2}]}, [1, 2]),
        ({"properties": {"a": {"type": "integer"}, "b": {}}}, {"a": 0, "b": "text"}),
        ({"properties": {"a": {}, "b": {"const": 1}}, "required": ["b"]}, {"b": 1}),
        ({"required": ["z"], "additionalProperties": {"type": "integer"}}, {"z": 0}),
        ({"properties": {"o": {"properties": {"p": {"type": "array", "items": {"enum": [1]}}}}}}, {"o": {"p": [1]}}),
        ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"const": 1}}}, 1),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, 0),
        ({"oneOf": [{"const": "x"}]}, "x"),
        (
            {
                "allOf": [
                    {"properties": {"a": {"const": 1}}, "required": ["a"]},
                    {"properties": {"b": {"const": 2}}, "required": ["b"]},
                ]
            },
            {"a": 1, "b": 2},
        ),
        (NODE, {}),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_instance_fits_the_schema(schema: Any, value: Any) -> None:
    assert instance(schema) == value


def test_an_optional_recursion_is_finite() -> None:
    assert json.dumps(instance(TREE)).count("children") < 10


DOUBLING = {
    f"d{depth}": {"properties": {s: {"$ref": f"#/$defs/d{depth + 1}"} for s in "ab"}, "required": ["a", "b"]}
    for depth in range(30)
}


@pytest.mark.parametrize(
    "schema",
    [
        pytest.param(5, id="a number"),
        pytest.param({"properties": {"a": False}}, id="false"),
        pytest.param({"type": "thing"}, id="unknown type"),
        pytest.param({"$ref": "#"}, id="refers to itself"),
        pytest.param({"$ref": "#/nowhere"}, id="refers nowhere"),
        pytest.param({"$ref": "https://example.com/x"}, id="refers to another document"),
        pytest.param({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, id="endless recursion"),
        pytest.param({"$ref": "#/$defs/d0", "$defs": {**DOUBLING, "d30": {}}}, id="huge"),
        pytest.param({"type": "array", "minItems": 10**9}, id="endless array"),
        pytest.param({"type": "string", "minLength": 10**9}, id="endless string"),
        pytest.param({"type": "integer", "minimum": 3, "maximum": 2}, id="contradiction"),
    ],
)
def test_schema_without_instance(schema: Any) -> None:
    with pytest.raises(NoInstanceError):
        instance(schema)
