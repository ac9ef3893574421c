"""The contract's files: lint is clean, stubs are fresh, and the check for breaking changes works."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chatrpc.v1 import chat_error_pb2, chat_message_pb2, chat_request_pb2, chat_response_pb2
from chatrpc_server.core.errors import Reason
from chatrpc_server.rpc.layers.errors import CODES

ROOT = Path(__file__).parents[2]
PROTOS = ROOT / "protos"
BUF = Path(sys.executable).parent / "buf"


def run(*command: object, cwd: Path = PROTOS) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)


def test_buf_lint_is_clean() -> None:
    result = run(BUF, "lint")
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_exactly_three_lint_rules_are_ignored() -> None:
    """All three for one reason: both RPCs share their request."""
    ignores = [line for file in PROTOS.rglob("*.proto") for line in file.read_text().splitlines() if "buf:lint" in line]
    assert len(ignores) == 3


@pytest.mark.timeout(300)
def test_stubs_are_fresh() -> None:
    """The first run installs the pinned generator."""
    result = run(sys.executable, PROTOS / "generate.py", "--check")
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_reference_is_fresh() -> None:
    result = run(sys.executable, PROTOS / "reference.py", "--check")
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_table_of_reasons_has_the_services_codes() -> None:
    sys.path.insert(0, str(PROTOS))
    try:
        import reference  # a script beside the contract
    finally:
        sys.path.remove(str(PROTOS))
    (error,) = (file for file in reference.descriptors() if file.name.endswith("chat_error.proto"))
    table = {(reason, code) for code, reason, _ in reference.reasons(reference.Comments(error).file)}
    codes = {(reason.value, code.name) for reason, code in CODES.items()}
    assert table - codes == {("UPSTREAM_ERROR", "FAILED_PRECONDITION"), ("UPSTREAM_ERROR_BODY", "(see below)")}
    assert codes - table == {("UPSTREAM_ERROR_BODY", "INTERNAL")}
    assert len({reason for reason, _ in table}) == len(Reason)


def test_nothing_breaks_callers_of_the_last_release() -> None:
    result = run(BUF, "breaking", "--against", "released.binpb")
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


GENERATED = {  # Java adds these to the accessors of a field with that name
    "string": ("{}_bytes",),
    "repeated": ("{}_list", "{}_count", "{}_builder", "{}_builder_list"),
}


def test_names_do_not_clash_in_java() -> None:
    kinds = [
        kind
        for file in (chat_request_pb2, chat_message_pb2, chat_response_pb2, chat_error_pb2)
        for kind in kinds_of(file)
    ]
    assert len(kinds) > 40
    for kind in kinds:
        names = {field.name for field in kind.fields}
        for field in kind.fields:
            forms = [
                *GENERATED["string"] * (field.type == field.TYPE_STRING),
                *GENERATED["repeated"] * field.is_repeated,
            ]
            assert not names & {form.format(field.name) for form in forms}, f"{kind.name}.{field.name}"


def kinds_of(file: Any) -> list[Any]:
    return list(file.DESCRIPTOR.message_types_by_name.values())


BREAKS = {
    "type": ("optional double temperature = 3;", "optional float temperature = 3;"),
    "presence": ("optional double temperature = 3;", "double temperature = 3;"),
    "name": ("optional double temperature = 3;", "optional double heat = 3;"),
    "removal": ("  optional double temperature = 3;\n", ""),
}


@pytest.mark.parametrize(("before", "after"), BREAKS.values(), ids=BREAKS)
def test_breaking_changes_are_caught(tmp_path: Path, before: str, after: str) -> None:
    changed = tmp_path / "protos"
    shutil.copytree(PROTOS, changed)
    assert run(BUF, "breaking", "--against", PROTOS, cwd=changed).returncode == 0
    file = changed / "chatrpc" / "v1" / "chat_request.proto"
    assert before in file.read_text()
    file.write_text(file.read_text().replace(before, after))
    result = run(BUF, "breaking", "--against", PROTOS, cwd=changed)
    assert result.returncode != 0
    assert "temperature" in result.stdout
