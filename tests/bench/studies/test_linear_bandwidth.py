"""The linear kernel's bandwidth: what is timed, and what is refused."""

from functools import partial

import pytest

from foredraft.bench.studies import linear_bandwidth as skinny
from foredraft.errors import UserError


@pytest.mark.full
def test_speeds_are_bytes_over_seconds(monkeypatch):
    def half_a_second(call, copies, repeats):
        call(copies[-1])
        return 0.5

    monkeypatch.setattr(skinny, "_median_seconds", half_a_second)
    monkeypatch.setattr(skinny.machine, "read_bandwidth", lambda: 20.0)
    found = skinny.measure_shape(48, 32, rows=[1, 6], stored=list(skinny.STORED), repeats=1, rotated=20_000)
    assert found["read_gb_s"] == 20.0
    sizes = {"fp32": 48 * 32 * 4, "bf16": 48 * 32 * 2, "int8": 48 * (32 + 4), "F.linear": 48 * 32 * 4}
    for name, size in sizes.items():
        assert found["gb_s"][name] == {"1": pytest.approx(size / 1e9 / 0.5), "6": pytest.approx(size / 1e9 / 0.5)}


def test_every_copy_is_read_in_rotation():
    seen = []
    assert skinny._median_seconds(seen.append, copies=[0, 1, 2], repeats=2) > 0
    assert seen == [0, 1, 2] * 3


@pytest.mark.parametrize("text", ["12", "3x", "axb", "0x4", "2x3x4"])
def test_shapes_that_are_none_are_refused(text):
    with pytest.raises(UserError, match="not a shape"):
        skinny.parse_shape(text)


def test_the_script(script, tmp_path, monkeypatch):
    import json

    monkeypatch.setattr(skinny, "measure_shape", partial(skinny.measure_shape, rotated=20_000))
    code, out, err = script(skinny, "--shapes", "48x32", "--weights", "fp32", "--rows", "1,2", "--repeats", 1, "--out",
                            tmp_path,
                            "--json")
    assert code == 0, err
    (row,) = json.loads(out.splitlines()[-1])["rows"]
    assert row["kind"] == "kernels" and set(row["shapes"]["48x32"]["gb_s"]) == {"fp32", "F.linear"}
    assert row["command"].startswith("python -m foredraft.bench.studies.linear_bandwidth --shapes 48x32")
    code, _, err = script(skinny, "--weights", "int3")
    assert code == 2 and "'int3' is not known" in err
