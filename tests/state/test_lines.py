"""Files of lines: shared, torn, full, moved away; none of it fails whoever writes."""

from __future__ import annotations

import json
import multiprocessing
import threading
import time
from pathlib import Path

import pytest

from tests.state.small_disk import needs_own_disk, resize, run_on_disk
from weighbridge.errors import BadInput
from weighbridge.state import lines as lines_module
from weighbridge.state.documents import replace_file
from weighbridge.state.lines import LineFile, read_lines
from weighbridge.state.schema import DocumentSchema

KIND = DocumentSchema("thing", (lambda content: content.update(migrated=True),))


def written(path: Path, *numbers: int) -> LineFile:
    file = LineFile(path, KIND)
    for n in numbers:
        file.append({"n": n})
    file.close()
    return file


def numbers(path: Path) -> list[int]:
    return [row["n"] for row in read_lines(path, KIND)]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "things.jsonl"
    assert written(path, 1, 2).lost == 0
    written(path, 3)
    assert list(read_lines(path, KIND)) == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert json.loads(path.read_text().splitlines()[0]) == {"schema": 1, "n": 1}


def test_lines_without_a_version_are_migrated(tmp_path: Path) -> None:
    path = tmp_path / "things"
    path.write_text('{"n": 1}\n')
    written(path, 2)
    assert list(read_lines(path, KIND)) == [{"n": 1, "migrated": True}, {"n": 2}]


def test_a_torn_line_costs_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As a killed process leaves it; the next one goes on behind it."""
    path = tmp_path / "things"
    written(path, 1)
    with path.open("a") as file:
        file.write('{"schema": 1, "n": 2')
    written(path, 3)
    assert numbers(path) == [1, 3]
    assert "1 lines were left out, the first of them line 2" in caplog.text


def test_a_line_that_is_nested_without_end_costs_no_other(tmp_path: Path) -> None:
    path = tmp_path / "things"
    path.write_text(
        '{"schema": 1, "n": 1}\n{"schema": 1, "n": ' + "[" * 100_000 + '\n{"schema": 1, "n": 3}\n'
    )
    assert numbers(path) == [1, 3]
    path.write_text("[" * 100_000)
    with pytest.raises(BadInput, match="this is no JSON"):
        numbers(path)


def test_what_is_no_file_of_lines_is_refused(tmp_path: Path) -> None:
    (tmp_path / "things").write_text("no JSON\nat all\n")
    with pytest.raises(BadInput, match="things:1: this is no JSON"):
        numbers(tmp_path / "things")
    with pytest.raises(BadInput, match=r"cannot read .*: no such file or directory"):
        numbers(tmp_path / "nothing")
    (tmp_path / "empty").touch()
    assert numbers(tmp_path / "empty") == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="the thing file /proc/no/where"):
        LineFile(Path("/proc/no/where"), KIND)
    with pytest.raises(BadInput, match="is a directory"):
        LineFile(tmp_path, KIND)


def _write_many(path: Path, first: int) -> None:
    file = LineFile(path, KIND, max_bytes=20_000)
    for n in range(first, first + 300):
        file.append({"n": n, "text": "x" * 50})
    file.close()


def test_processes_share_a_file_also_when_it_is_full(tmp_path: Path) -> None:
    """Each line is in one of the two files, whole; what went, went with the oldest file."""
    path = tmp_path / "things"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_write_many, args=(path, first)) for first in (0, 1000, 2000)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    found = numbers(path) + (numbers(tmp_path / "things.1") if (tmp_path / "things.1").exists() else [])
    assert len(found) == len(set(found))
    assert {n for n in found if n >= 0} <= {*range(300), *range(1000, 1300), *range(2000, 2300)}
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "things.1"]


def test_a_file_is_bounded_and_says_what_went(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "things"
    for n in range(60):
        file = LineFile(path, KIND, max_bytes=200)
        file.append({"n": n})
        file.close()
    assert path.stat().st_size + (tmp_path / "things.1").stat().st_size < 3 * 200
    assert numbers(path)[-1] == 59
    assert "older bytes" in caplog.text


def test_a_file_that_was_moved_away_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "things"
    file = LineFile(path, KIND)
    file.append({"n": 1})
    until(lambda: path.stat().st_size > 0)
    path.rename(tmp_path / "rotated")
    file.append({"n": 2})
    file.close()
    assert (numbers(tmp_path / "rotated"), numbers(path)) == ([1], [2])


def until(condition: object) -> None:
    end = time.monotonic() + 60
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_slow_disk_costs_lines_beyond_a_bound_and_never_a_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lines_module, "MAX_WAITING_BYTES", 1000)
    go = threading.Event()
    file = LineFile(tmp_path / "things", KIND)
    monkeypatch.setattr(file, "_follow", lambda: go.wait(60) and None)
    for n in range(200):
        file.append({"n": n})
    assert file.lost > 100
    go.set()
    file.close()
    assert len(numbers(tmp_path / "things")) == 200 - file.lost
    assert len([record for record in caplog.records if "could not be written" in record.message]) == 1


def test_what_is_no_json_is_lost_and_fails_nobody(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "things", KIND)
    file.append({"n": object()})
    file.append({"n": 1})
    file.close()
    assert file.lost == 1
    assert numbers(tmp_path / "things") == [1]


def fill(disk: str) -> None:
    path = Path(disk) / "things"
    file = LineFile(path, KIND)
    for n in range(40):
        file.append({"n": n, "text": "x" * 1500})
        time.sleep(0.001)
    until(lambda: file.lost > 0)
    resize(disk, "size=1m")
    file.append({"n": 1000})
    file.close()
    rows = [row["n"] for row in read_lines(path, KIND)]
    print(json.dumps([rows[0], rows[-1], len(rows), file.lost]))


@needs_own_disk
def test_a_full_disk_tears_no_line_that_can_be_read_later(tmp_path: Path) -> None:
    done = run_on_disk(f"{__name__}:fill", tmp_path / "disk", "20k")
    assert done.returncode == 0, done.stderr
    first, last, count, lost = json.loads(done.stdout)
    assert (first, last) == (0, 1000)
    assert count + lost == 41


def replace_on_full(disk: str) -> None:
    path = Path(disk) / "document"
    replace_file(path, b"x" * 8000)
    try:
        replace_file(path, b"y" * 80_000)
    except OSError as error:
        print(error.strerror, len(path.read_bytes()), len(list(Path(disk).iterdir())))


@needs_own_disk
def test_a_document_that_does_not_fit_leaves_the_old_one(tmp_path: Path) -> None:
    done = run_on_disk(f"{__name__}:replace_on_full", tmp_path / "disk", "40k")
    assert done.stdout == "No space left on device 8000 1\n", done.stderr
