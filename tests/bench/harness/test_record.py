from __future__ import annotations

import multiprocessing
import os

import pytest

from foredraft.bench.harness import machine, record
from foredraft.bench.report.collection import read_objects


def absent(number: int) -> dict:
    return {name: None for name in record.FIELDS} | {"seed": number, "absent": "a reason"}


def test_round_trip(tmp_path):
    file = tmp_path / "new" / "here.jsonl"
    measured = absent(1) | {"absent": None} | {name: {"median": 1.5} for name in record.MEASURED}
    record.append(file, [absent(0), measured])
    record.append(file, [absent(2)])
    assert read_objects(file) == [absent(0), measured, absent(2)]
    assert os.listdir(file.parent) == [file.name]


@pytest.mark.parametrize("row", [
    {"seed": 1},
    absent(0) | {"more": 1},
    absent(0) | {"absent": None},
    absent(0) | {"seed": float("nan")},
    absent(0) | {"absent": None} | {name: None for name in record.MEASURED if name != "rouge"},
])
def test_a_row_outside_the_schema_changes_nothing(tmp_path, row):
    file = tmp_path / "here.jsonl"
    record.append(file, [absent(0)])
    before = file.read_bytes()
    with pytest.raises(ValueError):
        record.append(file, [absent(1), row])
    assert file.read_bytes() == before


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_write_that_breaks_off_changes_nothing(tmp_path, monkeypatch, where):
    file = tmp_path / "here.jsonl"
    record.append(file, [absent(0)])

    def fail(*_arguments):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(record.os, where, fail)
        with pytest.raises(OSError, match="no space"):
            record.append(file, [absent(1)])
    assert read_objects(file) == [absent(0)]
    assert os.listdir(tmp_path) == [file.name]


def _write(file, start: int) -> None:
    for number in range(start, start + 10):
        record.append(file, [absent(number)])


def test_writers_wait_for_each_other(tmp_path):
    file = tmp_path / "here.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(file, start)) for start in (0, 10, 20)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(row["seed"] for row in read_objects(file)) == list(range(30))


def test_the_file_is_named_after_the_machine():
    cpu = {"cpu": "Acme(R) Core(TM) 7 @ 2.00GHz", "cores": 2, "gpu": None}
    assert machine.file_name(cpu) == "acme-core-7-2-00ghz-2-cores"
    assert machine.file_name(cpu | {"gpu": "Acme G1"}) == "acme-g1"
