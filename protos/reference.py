#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write docs/contract.md from the descriptors of the contract and their comments.

    python protos/reference.py            write docs/contract.md
    python protos/reference.py --check    write nothing; exit 1 if docs/contract.md is stale

Requires buf and protobuf, which the development environment has. The comments are the only source: the advice for each
reason is below, because the comments have no column for it, and a reason without advice is an error.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
OUT = ROOT / "docs" / "contract.md"
BUF = Path(sys.executable).parent / "buf"

ADVICE = {
    "INVALID_REQUEST": ("no", "Correct the field that BadRequest names."),
    "UPSTREAM_INVALID_REQUEST": ("no", "Correct the request; UpstreamError has the upstream's message and `param`."),
    "UPSTREAM_CONTEXT_LENGTH_EXCEEDED": ("no", "Shorten the chat, or request fewer tokens."),
    "UPSTREAM_CONTENT_FILTERED": ("no", "Change the content."),
    "UPSTREAM_REQUEST_TOO_LARGE": ("no", "Send a smaller request."),
    "UPSTREAM_UNPROCESSABLE": ("no", "Correct the request; UpstreamError has the upstream's message."),
    "UPSTREAM_MODEL_NOT_FOUND": ("no", "Correct `model`."),
    "UPSTREAM_NOT_FOUND": ("no", "Ask the operator to check the upstream's address."),
    "UPSTREAM_FORBIDDEN": ("no", "Ask the operator to check the permissions of the upstream's key."),
    "UPSTREAM_MODERATED": ("no", "Change the content."),
    "UPSTREAM_INSUFFICIENT_BALANCE": ("no", "Ask the operator to top up the upstream's account."),
    "UPSTREAM_ERROR": ("4xx: no; 5xx: later", "Read UpstreamError; its `http_status` is the upstream's."),
    "UPSTREAM_RATE_LIMITED": ("later", "Wait for the delay in RetryInfo, and send less at once."),
    "UPSTREAM_QUOTA_EXHAUSTED": ("no", "Ask the operator to raise the upstream's quota."),
    "IN_FLIGHT_LIMIT": ("later", "Wait for the delay in RetryInfo; another instance may have room at once."),
    "RESPONSE_TOO_LARGE": ("no", "Request less, or use the streaming RPC."),
    "UPSTREAM_CONFLICT": ("later", "Retry with backoff."),
    "UPSTREAM_UNIMPLEMENTED": ("no", "Ask the operator to check the upstream's address."),
    "DEADLINE_EXCEEDED": ("no", "Set a longer deadline, or request less."),
    "UPSTREAM_TIMEOUT": ("later", "Retry if the deadline allows it."),
    "UPSTREAM_UNREACHABLE": ("yes", "Retry with backoff."),
    "UPSTREAM_UNAVAILABLE": ("yes", "Retry after RetryInfo or with backoff."),
    "UPSTREAM_OVERLOADED": ("yes", "Retry after RetryInfo or with backoff."),
    "UPSTREAM_TRUNCATED": (
        "yes",
        "Discard the received part and repeat the whole call, or keep the part as incomplete.",
    ),
    "SERVER_DRAINING": ("yes", "Repeat the whole call; another instance responds."),
    "UPSTREAM_UNAUTHENTICATED": ("no", "Ask the operator to check the upstream's key."),
    "UPSTREAM_INTERNAL": ("later", "Retry with backoff."),
    "UPSTREAM_INVALID_RESPONSE": ("no", "Report it to the operator, with `x-request-id`."),
    "INTERNAL": ("no", "Report it to the operator, with `x-request-id`."),
    "UPSTREAM_ERROR_BODY": ("see `mapped_reason`", "Act as for `mapped_reason`; if it is absent, retry later."),
}

RETRY = """\
"Retry" means a retry by the caller. The service has then already retried failed connects, 408, 409, 429 and 5xx (see
above), so the caller should pause before a retry. **yes**: the channel's own retry of UNAVAILABLE covers
the case until the first message; after it, only the caller can repeat the call. **later**: retry after RetryInfo or
with backoff. **no**: the same call fails again.
"""

PRESENCE = """\
- **optional**: unset differs from the zero value (in C++, Java, C#: `has…`; in Go: a pointer; in TypeScript:
  `undefined`).
- **plain**: the field is never unset; its zero value means that there is no value.
- **list**, **map**: empty if there are no elements.
- **one of** *name*: at most one field of this group is set.
"""

# Field numbers of descriptor.proto, of which the paths in SourceCodeInfo consist: in a file, a service and a message.
MESSAGE, SERVICE, SYNTAX = 4, 6, 12
METHOD = 2
FIELD, ONEOF = 2, 8


class Comments:
    """The comments of one file, by path."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self._leading = {tuple(at.path): at.leading_comments for at in file.source_code_info.location}
        (syntax,) = (at for at in file.source_code_info.location if tuple(at.path) == (SYNTAX,))
        detached = [*syntax.leading_detached_comments, syntax.leading_comments]
        self.file = "\n".join(_unindent(text) for text in detached if text and "SPDX" not in text)
        """The comment above `syntax`."""

    def __call__(self, *path: int) -> str:
        """Return the comment of an element, without the linter's instructions."""
        lines = _unindent(self._leading.get(path, "")).splitlines()
        return "\n".join(line for line in lines if not line.startswith("buf:lint")).strip()


def descriptors() -> list[FileDescriptorProto]:
    """Return the package's files with their comments, the service first."""
    image = subprocess.run([BUF, "build", "-o", "-"], cwd=PROTOS, check=True, capture_output=True).stdout  # noqa: S603
    files = FileDescriptorSet.FromString(image).file
    order = ("service", "request", "message", "response", "error")
    return sorted(files, key=lambda file: order.index(file.name.split("_")[-1].removesuffix(".proto")))


def render(files: list[FileDescriptorProto]) -> str:
    """Return the whole page."""
    service, error = files[0], files[-1]
    names = {message.name for file in files for message in file.message_type}
    link = Links(names, {method.name for method in service.service[0].method})
    return (
        "\n".join(
            [
                "# The contract",
                "",
                "<!-- Written by protos/reference.py from the comments in protos/chatrpc/v1: edit those instead. -->",
                "",
                "Reference of every RPC, reason, message and field of the package `chatrpc.v1`, from the comments of",
                "the [.proto files](../protos/chatrpc/v1). [clients/](../clients) has clients in five languages.",
                "",
                *_index(files),
                "## Conventions",
                "",
                link(_bold(_paragraphs(Comments(service).file))),
                "",
                *_service(service.service[0], Comments(service), link),
                *_reasons(Comments(error).file, link),
                "## Messages",
                "",
                PRESENCE,
                "Numbers in the first column are field numbers.",
                "",
                *(line for file in files for line in _messages(file, link)),
            ]
        ).rstrip("\n")
        + "\n"
    )


class Links:
    """Turns names of messages, RPCs and sections in a text into links."""

    def __init__(self, messages: set[str], methods: set[str]) -> None:
        compound = {name for name in messages if len(re.findall("[A-Z]", name)) > 1} | methods
        alone = "|".join(sorted(compound, key=len, reverse=True))
        seen = "|".join(sorted(messages - compound, key=len, reverse=True))
        self._names = re.compile(rf"(?<![\w`./])(?:(?:{alone})\b(?!`|\.\w)|(?<=see )(?:{seen})\b)")

    def __call__(self, text: str) -> str:
        text = self._names.sub(lambda match: f"[{match[0]}](#{match[0].lower()})", text)
        text = text.replace("chat_error.proto", "[Reasons](#reasons)").replace("The table in [", "The table [")
        return re.sub(r"see convention (\d)", r"see [convention \1](#conventions)", text)


def _index(files: list[FileDescriptorProto]) -> Iterator[str]:
    yield "- [Conventions](#conventions)"
    for service in files[0].service:
        methods = ", ".join(f"[{method.name}](#{method.name.lower()})" for method in service.method)
        yield f"- [{service.name}](#{service.name.lower()}): {methods}"
    yield "- [Reasons](#reasons)"
    yield "- [Messages](#messages)"
    for file in files:
        if file.message_type:
            links = ", ".join(f"[{message.name}](#{message.name.lower()})" for message in file.message_type)
            yield f"  - `{file.name.split('/')[-1]}`: {links}"
    yield ""


def _service(service: ServiceDescriptorProto, comments: Comments, link: Links) -> Iterator[str]:
    yield from (f"## {service.name}", "", link(_bold(_paragraphs(comments(SERVICE, 0)))), "")
    for place, method in enumerate(service.method):
        request, response = method.input_type.split(".")[-1], method.output_type.split(".")[-1]
        stream = "stream of " if method.server_streaming else ""
        signature = f"[{request}](#{request.lower()}) → {stream}[{response}](#{response.lower()})"
        yield from (f"### {method.name}", "", signature, "")
        yield from (link(_paragraphs(comments(SERVICE, 0, METHOD, place))), "")


def reasons(comment: str) -> list[tuple[str, str, str]]:
    """Return code, reason and cause of each row of the table in chat_error.proto."""
    rows, code = [], ""
    for line in comment.splitlines():
        row = re.fullmatch(r"  (\S.*?\S|\s{4,}?)?\s+([A-Z_]{6,})  +(\S.*)", line)
        if row:
            code = (row[1] or "").strip() or code
            rows.append((code, row[2], row[3]))
    return rows


def _reasons(comment: str, link: Links) -> Iterator[str]:
    rows = reasons(comment)
    unknown = {reason for _, reason, _ in rows} ^ ADVICE.keys()
    if unknown:
        raise SystemExit(f"protos/reference.py: ADVICE and the table in chat_error.proto differ in {sorted(unknown)}")
    paragraphs = [part for part in comment.split("\n\n") if not part.startswith(("  ", "The errors of a call"))]
    yield from ("## Reasons", "", link(paragraphs[0]), "", RETRY)
    yield from ("| reason | code | cause | retry | what the caller does |", "|---|---|---|---|---|")
    for code, reason, cause in rows:
        retry, action = ADVICE[reason]
        code = "of `mapped_reason`" if code.startswith("(") else code
        yield f"| `{reason}` | {code} | {cause[0].upper() + cause[1:]} | {retry} | {link(action)} |"
    yield ""
    for paragraph in paragraphs[1:]:
        yield from (link(paragraph), "")


def _messages(file: FileDescriptorProto, link: Links) -> Iterator[str]:
    comments = Comments(file)
    for place, message in enumerate(file.message_type):
        yield from (f"### {message.name}", "", link(comments(MESSAGE, place)), "")
        yield from ("| # | field | type | presence | meaning |", "|--:|---|---|---|---|")
        groups: set[int] = set()
        for number, field in enumerate(message.field):
            meaning = comments(MESSAGE, place, FIELD, number)
            group = field.oneof_index if field.HasField("oneof_index") and not field.proto3_optional else None
            if group is not None and group not in groups:
                groups.add(group)
                about = comments(MESSAGE, place, ONEOF, group)
                yield f"| | *{message.oneof_decl[group].name}* | | one of the next fields | {link(_cell(about))} |"
            kind, presence = _type(field, message)
            cells = (str(field.number), f"`{field.name}`", kind, presence, link(_cell(meaning)))
            yield f"| {' | '.join(cells)} |"
        yield ""


def _type(field: FieldDescriptorProto, message: DescriptorProto) -> tuple[str, str]:
    """Return type and presence of a field as the table shows them."""
    name = field.type_name.split(".")[-1]
    entry = next((nested for nested in message.nested_type if nested.name == name), None)
    if entry is not None:
        key, value = (_scalar(part) for part in entry.field)
        return f"map of {key} to {value}", "map"
    kind = f"[{name}](#{name.lower()})" if name else _scalar(field)
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return kind, "list"
    if field.proto3_optional or (name and not field.HasField("oneof_index")):
        return kind, "optional"
    if field.HasField("oneof_index"):
        return kind, f"one of *{message.oneof_decl[field.oneof_index].name}*"
    return kind, "plain"


def _scalar(field: FieldDescriptorProto) -> str:
    return FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()


def _unindent(text: str) -> str:
    return "\n".join(line.removeprefix(" ") for line in text.splitlines()).strip("\n")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def _paragraphs(text: str) -> str:
    """Turn columns that follow a line with a colon into a list; all else is Markdown already."""
    lines: list[str] = []
    for line in text.splitlines():
        row = re.fullmatch(r"  (\S.*?)  +(\S.*)", line)
        if row:
            if lines and lines[-1].endswith(":"):
                lines.append("")
            terms = ", ".join(f"`{term}`" for term in row[1].split(", "))
            lines.append(f"- {terms}: {row[2]}")
        elif lines and lines[-1].startswith("- `") and line:
            lines += ["", line]
        else:
            lines.append(line)
    return "\n".join(lines)


def _bold(text: str) -> str:
    """Set the titles of paragraphs (`Deadlines. The call's ...`) in bold."""
    return re.sub(r"^((?:\d\. )?)([A-Z][a-z]+(?: [a-z]+){0,2}\.) ", r"\1**\2** ", text, flags=re.MULTILINE)


def main() -> int:
    """Write the page, or with --check compare it; return the exit code."""
    parser = argparse.ArgumentParser(description="Write docs/contract.md from the contract's comments.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if docs/contract.md is stale")
    check = parser.parse_args().check
    page = render(descriptors())
    stale = not OUT.exists() or OUT.read_text(encoding="utf-8") != page
    if stale and check:
        print("docs/contract.md: stale; run `make protos`", file=sys.stderr)
        return 1
    if stale:
        OUT.write_text(page, encoding="utf-8")
    print("docs/contract.md is fresh")
    return 0


if __name__ == "__main__":
    sys.exit(main())
