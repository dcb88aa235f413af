"""The alarm on made-up runs: machines of any speed, noise, one slowed part; and on a real case that is slowed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from foredraft.bench.regression import alarm, compare_runs
from foredraft.bench.studies import regression_proof

CHECKOUT = Path(__file__).resolve().parents[3]
CASES = {f"bench/test_parts.py::test_{name}": seconds for name, seconds in (
    ("linear", 3e-4), ("norm", 4e-6), ("step", 8e-4), ("round", 6e-3), ("draft", 2e-5), ("count", 4e-2), ("summary", 3e-2))}
NOISE = 0.03


def write_run(path: Path, draw: np.random.Generator, slow: str | None = None, calibrated: bool = True) -> Path:
    """A run on a machine of any speed between a half and twice, its fastest rounds within some per cent."""
    speed = 2 ** draw.uniform(-1, 1)

    def noisy(seconds: float) -> float:
        return seconds * speed * float(np.exp(NOISE * draw.standard_normal()))

    cases = [{"fullname": name, "stats": {"min": noisy(seconds * (1.5 if name == slow else 1))},
              "extra_info": {compare_runs.CALIBRATION: noisy(4e-3)} if calibrated else {}} for name,
              seconds in CASES.items()]
    path.write_text(json.dumps({"benchmarks": cases}))
    return path


def baseline(folder: Path, draw: np.random.Generator) -> Path:
    """Five runs, as regression_proof takes them."""
    (folder / "before").mkdir()
    for number in range(5):
        write_run(folder / "before" / f"{number}.json", draw)
    return folder / "before"


def slower(before: Path, after: Path) -> list[str]:
    rows = compare_runs.compare(compare_runs.read_runs(before), compare_runs.read_runs(after))
    return [row["case"] for row in rows if row["result"] == "slower"]


def test_ten_unchanged_runs_raise_no_alarm(tmp_path):
    draw = np.random.default_rng(1)
    first = baseline(tmp_path, draw)
    assert [slower(first, write_run(tmp_path / "next.json", draw)) for _ in range(10)] == [[]] * 10


@pytest.mark.parametrize("part", CASES)
def test_one_part_slowed_is_caught_and_no_other(tmp_path, part):
    draw = np.random.default_rng(2)
    first = baseline(tmp_path, draw)
    for _ in range(20):
        assert slower(first, write_run(tmp_path / "next.json", draw, part)) == [part]


def test_without_the_calibration_another_machine_would_raise_it(tmp_path):
    """The same runs in seconds raise alarms."""
    draw = np.random.default_rng(1)
    runs = [compare_runs.read_run(write_run(tmp_path / "one.json", draw))._replace(unit=1.0) for _ in range(11)]
    alarms = [row for run in runs[1:] for row in compare_runs.compare(runs[:1], [run]) if row["result"] == "slower"]
    assert alarms


def test_a_slow_calibration_of_one_run_hides_nothing(tmp_path):
    """Another process was busy during one run, but one case was timed in a quiet moment: that run is not counted as fast."""
    busy, quiet = compare_runs.Run({"a": 1.0}, 1.4), compare_runs.Run({"a": 1.01}, 1.0)
    assert [row["result"] for row in compare_runs.compare([busy, quiet], [quiet])] == ["same"]
    assert [row["result"] for row in compare_runs.compare([busy, quiet], [compare_runs.Run({"a": 1.4}, 1.0)])] == ["slower"]


def test_folders_cases_of_one_side_and_other_files(tmp_path, command):
    draw = np.random.default_rng(3)
    for number in range(3):
        write_run(tmp_path / f"{number}.json", draw)
    file = tmp_path / "0.json"
    assert len(compare_runs.read_runs(tmp_path)) == 3
    rows = compare_runs.compare([compare_runs.Run({"a": 1.0, "b": 2.0}, 1.0)], [compare_runs.Run({"a": 0.5, "c": 1.0}, 1.0)])
    assert [(row["case"], row["result"]) for row in rows] == [("a", "faster"), ("b", "gone"), ("c", "new")]
    assert command("bench", "compare", file, file)[0] == 0
    write_run(tmp_path / "uncalibrated.json", draw, calibrated=False)
    code, _, err = command("bench", "compare", file, tmp_path / "uncalibrated.json")
    assert code == 2 and "uncalibrated.json: not a run of `make bench`" in err
    part = next(iter(CASES))
    code, out, _ = command("bench", "compare", file, write_run(tmp_path / "slow.json", draw, part), "--json")
    assert code == 1 and json.loads(out.splitlines()[-1])["slower"] == [part]


@pytest.mark.parametrize("lasting", [False, True])
def test_an_alarm_is_timed_again_before_it_counts(tmp_path, script, monkeypatch, lasting):
    """A disturbance of one run disappears, a slower part stays; the slowed run is treated in the same way."""
    draw, part, asked = np.random.default_rng(4), next(iter(CASES)), {}

    def time(file, cases, slow, seconds):
        asked[file.stem] = cases
        disturbed = file.stem == "unchanged-1" or lasting and file.stem.startswith("unchanged-1-")
        write_run(file, draw, part if disturbed else None)
        if slow > 1:
            found = json.loads(file.read_text())
            for one in found["benchmarks"]:
                one["stats"]["min"] *= slow
            file.write_text(json.dumps(found))

    monkeypatch.setattr(alarm, "time_cases", time)
    monkeypatch.chdir(CHECKOUT)
    code, out, err = script(regression_proof, "--runs", 3, "--keep", tmp_path / "kept", "--out", tmp_path, "--json")
    row = json.loads(out.splitlines()[-1])["rows"][0]
    assert asked["unchanged-1-again-0"] == [part] and "unchanged-0-again-0" not in asked and row["timed_again"] == 1
    assert sorted(asked["slowed-1.5-again-1"]) == sorted(CASES) and row["missed"] == []
    assert [one["case"] for one in row["false_alarms"]] == [part] * lasting and code == lasting, err


@pytest.mark.parametrize("lasting", [False, True])
def test_compared_with_this_checkout_an_alarm_is_timed_again(tmp_path, command, monkeypatch, lasting):
    draw, part, asked = np.random.default_rng(5), next(iter(CASES)), []

    def time(file, cases, slow, seconds):
        asked.append(cases)
        write_run(file, draw, part if lasting or len(asked) == 1 else None)

    monkeypatch.setattr(alarm, "time_cases", time)
    monkeypatch.chdir(CHECKOUT)
    code, out, _ = command("bench", "compare", baseline(tmp_path, draw), "--json")
    assert json.loads(out.splitlines()[-1])["slower"] == [part] * lasting and code == lasting
    assert asked == [[str(alarm.CASES)]] + [[part]] * (alarm.AGAIN if lasting else 1)
    monkeypatch.chdir(tmp_path)
    code, _, err = command("bench", "compare", tmp_path)
    assert code == 2 and "bench/ is not here" in err


@pytest.mark.full
def test_a_real_case_is_calibrated_and_can_be_slowed(tmp_path, monkeypatch):
    """No time is asserted, only that the fixture calibrates and slows."""
    monkeypatch.setenv("FOREDRAFT_BENCH_SLOW", "1.5")
    # pytest-benchmark writes nothing in a worker of xdist
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    file = tmp_path / "run.json"
    subprocess.run([sys.executable, "-m", "pytest", "-q", "bench/regression/test_kernels.py", "-k", "test_norm",
                    "--benchmark-enable",
                    "-p", "no:cacheprovider", "--benchmark-max-time=0.01", f"--benchmark-json={file}"], cwd=CHECKOUT,
                   check=True, capture_output=True)
    (found,) = compare_runs.read_runs(file)
    (name,) = found.seconds
    assert name == "bench/regression/test_kernels.py::test_norm" and found.seconds[name] > 0 and found.unit > 0


def test_slowed_takes_as_many_times_as_long(monkeypatch):
    import importlib.util

    spec = importlib.util.spec_from_file_location("bench_conftest", CHECKOUT / "bench" / "regression" / "conftest.py")
    conftest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conftest)
    # the clock moves by one at each reading: 1 for the function, so 1.5 is over at the second reading after it
    ticks = iter(range(100))
    monkeypatch.setattr(conftest.time, "perf_counter", lambda: next(ticks))
    assert conftest.slowed(lambda a, b: a + b, 1.5)(1, b=2) == 3
    assert next(ticks) == 3
