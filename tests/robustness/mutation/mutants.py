"""Mutants of a source file's tables: one entry less, or the values of two neighbours swapped.

A table is a dict, or a set, tuple or list of constants, anywhere in the file; the names in a call inside a table are
entries too. Tables that derive from the messages' descriptors are mutated field by field, through the exceptions that
the file already has for fields.
"""

import ast
import copy
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from google.protobuf.descriptor import Descriptor

from chatrpc.v1 import chat_request_pb2, chat_response_pb2


class Mutant(NamedTuple):
    """A mutated source. `name` describes the change and does not depend on line numbers."""

    file: str
    name: str
    source: str


class FieldTable(NamedTuple):
    """The way to make a file skip a field: an entry for the field's path in one of its tables."""

    table: str
    entry: str
    roots: tuple[Descriptor, ...]


FIELD_TABLES = {
    "core/openai/requests.py": FieldTable(
        "_SPECIAL", '"{path}": _nothing', (chat_request_pb2.CreateChatCompletionRequest.DESCRIPTOR,)
    ),
    "core/openai/mapping.py": FieldTable(
        "_WITHOUT_KEY",
        '"{path}"',
        (
            chat_response_pb2.CreateChatCompletionResponse.DESCRIPTOR,
            chat_response_pb2.CreateChatCompletionStreamResponse.DESCRIPTOR,
        ),
    ),
}


def mutants(file: str, source: str) -> Iterator[Mutant]:
    """Yield all mutants of a file."""
    seen: Counter[str] = Counter()
    for table, owner in tables(ast.parse(source)):
        for what, mutated in variants(table):
            name = f"{file} {owner}: {what}"
            seen[name] += 1
            again = f" ({seen[name]})" if seen[name] > 1 else ""
            yield Mutant(file, name + again, replaced(source, table, ast.unparse(mutated)))
    if file in FIELD_TABLES:
        yield from without_fields(file, source, FIELD_TABLES[file])


def tables(tree: ast.Module) -> Iterator[tuple[ast.expr, str]]:
    """Yield each table with the name of its assignment or function."""
    for statement in ast.walk(tree):
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            owner, calls = statement.name, False
        elif isinstance(statement, ast.Assign | ast.AnnAssign) and statement in tree.body:
            owner, calls = ast.unparse(getattr(statement, "target", None) or statement.targets[0]), True
        else:
            continue
        skipped = [key for each in ast.walk(statement) if isinstance(each, ast.Dict) for key in each.keys]
        skipped += [each.value for each in ast.walk(statement) if isinstance(each, ast.Return)]
        for node in ast.walk(statement):
            if is_table(node, calls) and (isinstance(node, ast.Dict) or node not in skipped):
                yield node, owner


def is_table(node: ast.AST, calls: bool) -> bool:
    match node:
        case ast.Dict():
            return len(node.keys) > 0 and None not in node.keys
        case ast.Set() | ast.Tuple() | ast.List():
            return len(node.elts) > 0 and all(isinstance(item, ast.Constant | ast.Starred) for item in node.elts)
        case ast.Call():
            return calls and len(node.args) > 1 and all(isinstance(item, ast.Constant) for item in node.args)
    return False


def variants(table: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """Yield a description of the change and the changed table."""
    entries = {ast.Dict: "keys", ast.Call: "args"}.get(type(table), "elts")
    for position, entry in enumerate(getattr(table, entries)):
        mutated = copy.deepcopy(table)
        del getattr(mutated, entries)[position]
        if isinstance(mutated, ast.Dict):
            del mutated.values[position]
        yield f"without {ast.unparse(entry)}", mutated
    if isinstance(table, ast.Dict):
        for position, (one, two) in enumerate(pairwise(table.values)):
            if ast.unparse(one) != ast.unparse(two):
                mutated = copy.deepcopy(table)
                mutated.values[position : position + 2] = [two, one]
                keys = [ast.unparse(key) for key in table.keys[position : position + 2] if key is not None]
                yield f"swapped {keys[0]} and {keys[1]}", mutated


def replaced(source: str, node: ast.expr, text: str) -> str:
    """Return the source with other text in place of a node. The columns of `ast` count bytes."""
    lines = source.encode().splitlines(keepends=True)
    assert node.end_lineno is not None
    before = b"".join(lines[: node.lineno - 1]) + lines[node.lineno - 1][: node.col_offset]
    after = lines[node.end_lineno - 1][node.end_col_offset :] + b"".join(lines[node.end_lineno :])
    return (before + b"(" + text.encode() + b")" + after).decode()


def without_fields(file: str, source: str, fields: FieldTable) -> Iterator[Mutant]:
    """Yield mutants that skip one field of a message, except fields that the file skips anyway."""
    names = {owner: table for table, owner in tables(ast.parse(source))}
    table = names[fields.table]
    text = ast.unparse(table)
    for path in paths(fields.roots):
        entry = fields.entry.format(path=path)
        if not path.endswith(".extra_json") and entry.replace('"', "'") not in text:
            yield Mutant(
                file, f"{file} fields: without {path}", replaced(source, table, f"{text[:-1]}, {entry}{text[-1]}")
            )


def paths(roots: tuple[Descriptor, ...]) -> list[str]:
    """Return `Message.field` for all messages reachable from the roots, map entries excluded."""
    seen: dict[str, Descriptor] = {}
    waiting = list(roots)
    while waiting:
        message = waiting.pop(0)
        if message.full_name not in seen and not message.GetOptions().map_entry:
            seen[message.full_name] = message
            waiting += [field.message_type for field in message.fields if field.message_type]
    return [f"{message.name}.{field.name}" for message in seen.values() for field in message.fields]
