"""Files that are no settings: every kind is an error with words, and no read waits."""

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from chatrpc_server.settings import files
from support.settings_loading import ROWS, load_from, mistakes

LAUGHS = "\n".join(["a: &l0 [x, x, x]", *(f"b{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 30))])


def _directory(path: Path) -> None:
    path.mkdir()


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    # A short name, because the path of a socket has a limit of 108 bytes.
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(path.parent, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{here}/{path.name}")
        os.close(here)


def _device(name: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(name)


def _large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(files.MAX_BYTES + 1)


def _loop(path: Path) -> None:
    path.symlink_to(path)


NOT_REGULAR = "Is not a regular file"
KINDS = [
    pytest.param(_directory, "Is a directory", id="directory"),
    pytest.param(_fifo, NOT_REGULAR, id="fifo"),
    pytest.param(_socket, NOT_REGULAR, id="socket"),
    pytest.param(_device("/dev/zero"), NOT_REGULAR, id="zero"),
    pytest.param(_device("/dev/null"), NOT_REGULAR, id="null"),
    pytest.param(_device("/dev/tty"), NOT_REGULAR, id="tty"),
    pytest.param(_device("/no/such/file"), "No such file or directory", id="dangling"),
    pytest.param(_loop, "Too many levels of symbolic links", id="loop"),
    pytest.param(_large, f"Larger than {files.MAX_BYTES} bytes", id="large"),
]


@pytest.mark.parametrize(("make", "reason"), KINDS)
@pytest.mark.parametrize("path", [row.path for row in ROWS if row.type == "a path"])
def test_files_that_settings_name(path: str, make: Callable[[Path], None], reason: str, tmp_path: Path) -> None:
    make(tmp_path / "file")
    flag = next(row.flag for row in ROWS if row.path == path)
    found = mistakes(flags=(flag, str(tmp_path / "file")))
    assert f"{flag}: the file cannot be read: {reason}; name a readable file" in found


@pytest.mark.parametrize(("make", "reason"), KINDS)
def test_the_settings_file(make: Callable[[Path], None], reason: str, file: Path) -> None:
    make(file)
    reason = reason.replace(str(files.MAX_BYTES), "131072")
    assert mistakes(flags=(f"--config={file}",)) == [f"{file}: cannot be read: {reason}; name a readable file"]


def test_a_path_that_no_file_can_have(file: Path) -> None:
    assert mistakes(file=file, text='upstream: {ca_file: "a\\0b"}') == [
        f"upstream.ca_file in {file}, line 1: the file cannot be read: not a valid path; name a readable file"
    ]


def test_a_file_that_becomes_a_fifo_between_check_and_open(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    regular = file.parent / "regular"
    regular.touch()
    os.mkfifo(file)
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path: stat(regular if path == file else path))
    with pytest.raises(OSError, match=NOT_REGULAR):
        files.read(file)


def test_a_read_is_complete(file: Path) -> None:
    content = os.urandom(files.MAX_BYTES)
    file.write_bytes(content)
    assert files.read(file) == content


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("[" * 3000, "FILE, line 1: not YAML: nested more than 32 levels deep; correct it"),
        ("a: " + "[" * 3000 + "]" * 3000, "FILE, line 1: not YAML: nested more than 32 levels deep; correct it"),
        ("{a: " * 3000 + "}" * 3000, "FILE, line 1: not YAML: nested more than 32 levels deep; correct it"),
        ("- " * 3000, "FILE, line 1: not YAML: nested more than 32 levels deep; correct it"),
        ("? " * 3000, "FILE, line 1: not YAML: nested more than 32 levels deep; correct it"),
        (
            "\n".join("  " * n + "a:" for n in range(300)),
            "FILE, line 32: not YAML: nested more than 32 levels deep; correct it",
        ),
        (LAUGHS, "a in FILE, line 1: unknown setting; see chatrpc-server serve --help"),
        ("log: &one {level: info}\nlimits: &one {}", "FILE, line 2: not YAML: found duplicate anchor '…'"),
        ("log: {level: &log info}\ntls: &log {}", "FILE, line 2: not YAML: found duplicate anchor '…'"),
        ("upstream: &u {upstream: *u}", "upstream.upstream in FILE, line 1: unknown setting; did you mean upstream"),
        ("models: &m {x: *m}", "models.x.x in FILE, line 1: unknown setting; see"),
        ("log: {<<: &l {level: info}}", "log.<< in FILE, line 1: unknown setting; see"),
    ],
)
def test_files_that_exhaust_a_parser(text: str, mistake: str, file: Path) -> None:
    found = mistakes(file=file, text=text)
    assert any(each.startswith(mistake.replace("FILE,", f"{file},")) for each in found), found


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(f"name_{number}: x" for number in range(6000)),
        "\n".join(f"listen_{number}: x" for number in range(6000)),
        "\n".join(f"{number}:" for number in range(6000)),
        "\n".join(["models:", *(f"  a{number} b:" for number in range(6000))]),
        "\n".join(["models:", *(f"  a{number}: {{price: 1}}" for number in range(3000))]),
        "\n".join("log:" for _ in range(6000)),
    ],
    ids=["names", "like-names", "numbers", "models", "inside-models", "twice"],
)
def test_many_mistakes_are_shortened(text: str, file: Path) -> None:
    """The search for the nearest names, and the report, are bounded."""
    started = time.process_time()
    found = mistakes(file=file, text=text)
    assert time.process_time() - started < 30  # 6000 searches take minutes
    assert len(found) == 51
    assert found[-1] == "more mistakes follow; correct these first"


def test_a_long_name_is_not_compared_as_a_whole(file: Path) -> None:
    assert mistakes(file=file, text=f"? {'ab' * 50_000}\n: x") == [
        f"… in {file}, line 1: unknown setting; see chatrpc-server serve --help"
    ]


def test_deep_but_allowed_content_is_an_unknown_setting(file: Path) -> None:
    assert mistakes(file=file, text="a: " + "[" * 30 + "]" * 30) == [
        f"a in {file}, line 1: unknown setting; see chatrpc-server serve --help"
    ]


def test_a_mount_of_a_config_map(tmp_path: Path) -> None:
    """Symbolic links to a folder that is replaced at once, as in Kubernetes."""
    for name, workers in (("..1", 2), ("..2", 3)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "chatrpc.yaml").write_text(f"workers: {workers}\n")
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "chatrpc.yaml").symlink_to("..data/chatrpc.yaml")
    mounted = tmp_path / "chatrpc.yaml"
    before = files.fingerprint(mounted)
    assert load_from((f"--config={mounted}",)).workers == 2
    (tmp_path / "..tmp").symlink_to("..2")
    (tmp_path / "..tmp").rename(tmp_path / "..data")
    assert files.fingerprint(mounted) != before
    assert load_from((f"--config={mounted}",)).workers == 3
