"""The files of the workers' metrics: their space is allocated ahead, and series without space are private."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, values
from prometheus_client.multiprocess import MultiProcessCollector

from chatrpc_server.telemetry import multiprocess


@pytest.fixture
def notices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The notices of this process, which is now a worker."""
    monkeypatch.setattr(values, "MmapedDict", values.MmapedDict)  # type: ignore[attr-defined]  # restored afterwards
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    notices: list[str] = []
    multiprocess.use_worker_files(tmp_path, 0, notices.append)
    return notices


def _counter() -> Counter:
    return Counter("calls", "Calls.", ["model"], registry=CollectorRegistry())


def _shared(folder: Path) -> dict[str, float]:
    """Return the values by model that the parent sees."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]
    samples = [sample for metric in registry.collect() for sample in metric.samples]
    return {sample.labels["model"]: sample.value for sample in samples}


def test_every_byte_is_allocated(notices: list[str], tmp_path: Path) -> None:
    counter = _counter()
    for number in range(2000):  # several times the first size
        counter.labels(f"model-{number:04}").inc(number)
    assert _shared(tmp_path) == {f"model-{number:04}": number for number in range(2000)}
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size > 1 << 16
    assert file.stat().st_blocks * 512 >= file.stat().st_size
    assert not notices


def _fails(number: int) -> Any:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_no_space_for_growth(
    number: int,
    notices: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The series before the failure remain shared and true; later ones count in private."""
    counter = _counter()
    counter.labels("first").inc()
    monkeypatch.setattr(os, "posix_fallocate", _fails(number))
    for index in range(2000):
        counter.labels(f"model-{index:04}").inc(index)
        counter.labels("first").inc()
    shared = _shared(tmp_path)
    assert 10 < len(shared) < 2000
    assert shared["first"] == 2001
    assert all(value == int(name.partition("-")[2]) for name, value in shared.items() if name != "first")
    assert counter.labels("model-1999")._value.get() == 1999
    assert notices == [multiprocess.INCOMPLETE]
    (record,) = caplog.records
    assert (record.event, record.cause) == ("metrics_not_shared", f"[Errno {number}] {os.strerror(number)}")


def test_no_space_from_the_start(notices: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", _fails(errno.ENOSPC))
    counter = _counter()
    counter.labels("a").inc(2)
    counter.labels("a").inc(3)
    assert counter.labels("a")._value.get() == 5
    assert not list(tmp_path.iterdir()), "the parent would read an empty file"
    assert notices == [multiprocess.INCOMPLETE]


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 100, b"\x10\x27\0\0" + bytes(1 << 16)], ids=["empty", "short", "long"]
)
def test_a_damaged_file_of_the_predecessor(content: bytes, notices: list[str], tmp_path: Path) -> None:
    (tmp_path / "counter_0.db").write_bytes(content)
    counter = _counter()
    counter.labels("a").inc(2)
    assert counter.labels("a")._value.get() == 2


def test_a_missing_folder(notices: list[str], tmp_path: Path) -> None:
    """Such as one that a cleaner of temporary files has removed."""
    tmp_path.rmdir()
    counter = _counter()
    counter.labels("a").inc(2)
    assert counter.labels("a")._value.get() == 2
    assert notices == [multiprocess.INCOMPLETE]


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EBADF])
def test_a_file_system_that_cannot_allocate(
    number: int, notices: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", _fails(number))
    test_every_byte_is_allocated(notices, tmp_path)


def test_a_successor_continues_the_file(notices: list[str], tmp_path: Path) -> None:
    _counter().labels("a").inc(2)
    multiprocess.use_worker_files(tmp_path, 0, notices.append)
    _counter().labels("a").inc(3)
    assert _shared(tmp_path) == {"a": 5}
    assert not notices
