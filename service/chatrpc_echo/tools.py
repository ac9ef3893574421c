"""Chooses the tool calls of the completion from the tools of the request. Pure."""

import json
import re
from dataclasses import dataclass
from typing import Any

from chatrpc_echo.errors import ApiError
from chatrpc_echo.schema_instances import NoInstanceError, instance
from chatrpc_echo.validation import missing, require_object


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call: `kind` is function, custom or function_call (legacy, no id); `text` is the arguments or input."""

    kind: str
    name: str
    text: str
    identity: str = ""


@dataclass(frozen=True, slots=True)
class _Tool:
    """A tool of the request; `where` is its path there, for errors."""

    kind: str
    name: str
    parameters: Any
    where: str


def choose_calls(body: dict[str, Any], question: str, identity: str) -> list[ToolCall]:
    """Return the tool calls: none unless the request has tools and its last message is from a user.

    The called tool is the tool of `tool_choice`, else a tool that the question names, else the first tool. With
    `parallel_tool_calls: true`, all tools that the question names are called, or all tools if it names none. The input
    of a function is small arguments that fit its schema; the input of a custom tool is the question. Ids derive from
    `identity`.

    Raises ApiError (400) for an invalid tool, a schema without instance, or a choice that is not among the tools.
    """
    tools = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(body.get("tools", ()))]
    legacy = [
        _function(each, f"functions[{index}]", "function_call") for index, each in enumerate(body.get("functions", ()))
    ]
    if body["messages"][-1]["role"] != "user":
        return []
    if tools:
        chosen = _select(tools, body.get("tool_choice", "auto"), "tool_choice")
    else:
        chosen = _select(legacy, body.get("function_call", "auto"), "function_call")
    named = [tool for tool in chosen if re.search(rf"(?<!\w){re.escape(tool.name)}(?!\w)", question)]
    chosen = named or chosen
    if not (tools and body.get("parallel_tool_calls") is True):
        chosen = chosen[:1]
    return [
        ToolCall(tool.kind, tool.name, _input(tool, question), f"call_{identity}_{index}")
        for index, tool in enumerate(chosen)
    ]


def _input(tool: _Tool, question: str) -> str:
    if tool.kind == "custom":
        return question
    try:
        return json.dumps(instance(tool.parameters), ensure_ascii=False)
    except NoInstanceError as error:
        raise ApiError(
            400,
            f"Invalid schema for function '{tool.name}': {error}.",
            param=f"{tool.where}.parameters",
            code="invalid_function_parameters",
        ) from error


def _tool(tool: Any, where: str) -> _Tool:
    tool = require_object(tool, where)
    match tool.get("type"):
        case "function":
            return _function(tool.get("function"), f"{where}.function", "function")
        case "custom":
            return _Tool("custom", _name(tool.get("custom"), f"{where}.custom"), None, where)
        case None:
            raise missing(f"{where}.type")
        case other:
            raise ApiError(
                400,
                f"Invalid value: '{other}'. Supported values are: 'function' and 'custom'.",
                param=f"{where}.type",
                code="invalid_value",
            )


def _function(function: Any, where: str, kind: str) -> _Tool:
    name = _name(function, where)
    return _Tool(kind, name, function.get("parameters") or {"type": "object"}, where)


def _name(value: Any, where: str) -> str:
    if value is None:
        raise missing(where)
    name = require_object(value, where).get("name")
    if not isinstance(name, str) or not name:
        raise missing(f"{where}.name")
    return name


def _select(tools: list[_Tool], choice: Any, param: str) -> list[_Tool]:
    """Return the tools that the choice selects: a mode, one tool by name, or a list of allowed tools."""
    if choice == "none":
        return []
    if isinstance(choice, str):
        return tools
    if choice.get("type") == "allowed_tools":
        allowed = choice.get("allowed_tools")
        listed = allowed.get("tools") if isinstance(allowed, dict) else None
        names = [_named(tool, param) for tool in listed] if isinstance(listed, list) else []
        return [tool for tool in tools if tool.name in names]
    name = _named(choice, param)
    for tool in tools:
        if tool.name == name:
            return [tool]
    raise ApiError(
        400,
        f"Invalid value for '{param}': no function named '{name}' was specified in the 'tools' parameter.",
        param=param,
    )


def _named(choice: Any, param: str) -> str:
    """Return the name in `{type, function: {name}}`, `{type, custom: {name}}` or plain `{name}`."""
    choice = require_object(choice, param)
    holder = choice.get(choice["type"]) if isinstance(choice.get("type"), str) else choice
    return _name(holder if isinstance(holder, dict) else choice, param)
