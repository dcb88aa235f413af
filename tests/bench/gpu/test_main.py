"""Every section of bench/gpu at tiny sizes on the CPU: what is wrong in them must not wait for a GPU."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from foredraft.bench.gpu import checks as gpu_checks
from foredraft.bench.gpu import device_drafters as gpu_drafters
from foredraft.bench.gpu import main as gpu
from foredraft.bench.gpu import precompile as gpu_compile
from foredraft.bench.gpu import times as gpu_times
from foredraft.bench.gpu import transformers_peer as gpu_peers
from foredraft.bench.gpu import verification_peers as gpu_verification
from foredraft.bench.gpu.sizes import Sizes
from foredraft.kernels.core.backend_triton import HAS_TRITON
from foredraft.kernels.verify import accept_triton as verification

if HAS_TRITON:
    from launches import Launches
pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="needs triton")
TINY = dict(model_type="t5", vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_decoder_layers=1, num_heads=2,
            feed_forward_proj="gated-gelu", tie_word_embeddings=False, relative_attention_num_buckets=8,
            decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
SIZES = Sizes(device="cpu", dtype="float32", geometries={"tiny": TINY}, large=("tiny",), checked="tiny",
              batches=(1, 2), reads=(1, 2), draft_tokens=1, source=66, together=(66, 130),
              new_tokens=4, repeats=1, texts=2, megabytes=1)


@pytest.mark.full
def test_kernels_and_bits_pass_their_checks():
    rows = [*gpu_checks.check_kernels(SIZES), *gpu_checks.check_bits(SIZES, layers=1)]
    assert len(rows) == 30 and all(row["passed"] for row in rows), rows


@pytest.mark.full
def test_kernels_of_drafters_pass_their_checks():
    rows = list(gpu_checks.check_drafters(SIZES))
    assert len(rows) == 5 and all(row["passed"] for row in rows), rows


@pytest.mark.first(1)
@pytest.mark.parametrize(("kernel", "place", "left", "check"), [
    ("FUSED_LOGITS", 0, 0.99, "logits"), ("ADD", 0, 0.99, "add"), ("FUSED_SELF_ATTENTION", 2, 0.95, "self-attention"),
    ("FUSED_CROSS_ATTENTION", 2, 0.95, "cross-attention"), ("CELL", 3, 0.9, "recurrent cell"),
    ("MIX", 2, 0.9, "mixed inputs"), ("CONVOLUTION", 1, 0.95, "convolution"), ("VOCABULARY_LOGITS", 0, 0.99,
                                                                               "listed logits")])
def test_a_kernel_that_leaves_a_part_of_a_term_out_fails_its_check(kernel, place, left, check, monkeypatch):
    """A hundredth of one of the inputs' columns, or a tenth where rounding is coarser."""
    right = getattr(gpu_checks, kernel)

    def wrong(*arguments):
        arguments = list(arguments)
        arguments[place] = arguments[place].clone()
        arguments[place][:, -1] *= left
        right["triton"](*arguments)

    monkeypatch.setattr(gpu_checks, kernel, right | {"triton": wrong})
    of_target = kernel.startswith("FUSED") or kernel == "ADD"
    rows = list((gpu_checks.check_kernels if of_target else gpu_checks.check_drafters)(SIZES))
    # another largest logit may come of it
    assert {row["check"].split(",")[0] for row in rows if not row["passed"] and "argmax" not in row["check"]} == {check}


@pytest.mark.full
def test_the_model_passes_its_checks():
    rows = list(gpu_checks.check_model(SIZES))
    assert len(rows) == 4 and all(row["passed"] for row in rows), rows


@pytest.mark.full
def test_steps_loop_bandwidth_and_library():
    (bandwidth,) = gpu_times.measure_bandwidth(SIZES)
    assert bandwidth["copy_gb_s"] > 0
    steps = list(gpu_times.measure_steps(SIZES, [bandwidth]))
    assert [(row["batch"], row["reads"]) for row in steps] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert all(row["us"]["median"] > 0 and row["v"] > 0 and row["share"] > 0 for row in steps)
    assert {row["modelled_on"] for row in steps} == {"cpu, arithmetic left out"}
    assert next(gpu_times.measure_steps(SIZES, []))["share"] is None
    loop = list(gpu_times.measure_loop(SIZES))
    assert [(row["batch"], row["draft_tokens"]) for row in loop] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    for row in loop:
        alone = row["pass_us"] + row["draft_us"]
        assert row["eager_us"] == pytest.approx(alone + row["added_us"]) == pytest.approx(alone * (1 + row["overhead"]))
        assert (row["draft_us"] > 0) == (row["drafted"] > 0) == (row["draft_tokens"] > 0)
    assert len(list(gpu_checks.compare_library(SIZES))) == 2


@pytest.mark.full
def test_family_and_model():
    family = list(gpu_drafters.measure_family(SIZES))
    assert {row["method"] for row in family} == {"plain", "lookup", "ngram"} and all(row["same_tokens"] for row in family)
    rows = list(gpu.SECTIONS["model"].run(SIZES, {"family": family}))
    accepted = next(row["tokens_per_step"] for row in family if row["method"] == "lookup")
    assert all(row["tokens_per_step"] == accepted and row["modelled"] for row in rows)
    # nothing of this size was timed
    assert all(row["measured_tokens_per_second"] is None for row in rows)


def test_the_modelled_figure_goes_by_what_was_measured():
    XL = dict(geometry="flan-t5-xl")
    steps = [XL | {"batch": 1, "reads": 1, "us": {"median": 1e9}}, XL | {"batch": 1, "reads": 2, "us": {"median": 2000.0}},
             {"geometry": "flan-t5-base", "batch": 2, "reads": 2, "us": {"median": 1.0}}]
    loop = [XL | {"batch": batch, "draft_tokens": K, "draft_us": 20.0 * K, "added_us": 900.0 - 860 * K}
              for batch in SIZES.batches for K in (0, 1)]
    one, other = gpu_times.model_xl(SIZES, [], 3.0, steps, loop)
    assert one["measured_us"] == 2000 + 20 + 40 and other["measured_us"] is None
    assert one["measured_tokens_per_second"] == pytest.approx(3e6 / one["measured_us"])
    slower, _ = gpu_times.model_xl(SIZES, [], 3.0, [step | {"us": {"median": 9000.0}} for step in steps], loop)
    assert slower["measured_us"] > 9000 and slower["us"] == one["us"]
    assert next(gpu_times.model_xl(SIZES, [], 3.0, steps, loop[:1]))["measured_us"] is None


def test_the_counted_figure_is_of_the_device_that_was_measured():
    wide = replace(SIZES, batches=(128,), draft_tokens=5)

    def counted(device):
        # a bandwidth at which arithmetic counts, though every tile of rows reads the weights
        (row,) = gpu_times.model_xl(wide, [{"device": device, "copy_gb_s": 1e6}] if device else [], 3.0)
        return row["us"], row["modelled_on"]

    hopper, ampere, unknown = map(counted, ("NVIDIA H200", "NVIDIA A100-SXM4-80GB", "NVIDIA GH200 480GB"))
    assert ampere[0] > 1.5 * hopper[0] > 1.5 * unknown[0]
    assert ampere[1] == "NVIDIA A100-SXM4-80GB" and unknown[1] == "NVIDIA GH200 480GB, arithmetic left out"
    assert counted(None)[1] == "H200, the maker's figures"


def test_sections_before_the_peers_leave_them_their_time():
    before = list(gpu.SECTIONS)[: list(gpu.SECTIONS).index("peers")]
    assert sum(gpu.SECTIONS[name].seconds for name in before) + 80 <= gpu.TOTAL


@pytest.mark.full
def test_what_is_compiled_ahead_is_what_the_sections_launch(monkeypatch):
    """The kernels compiled ahead, compared by signature and constants, are all that the timed sections launch."""
    # as on a device: the interpreter takes as many sequences together as there are
    monkeypatch.setattr(verification, "sequences_per_program", lambda B, weight: 1)
    jobs = gpu_compile.jobs(SIZES, V=100)
    assert list(jobs) == ["passes of tiny", "loop of tiny", *(f"verifications of {K}" for K in (1, 2, 4, 8))]
    with Launches() as ahead:
        for name in ("passes of tiny", "loop of tiny", "verifications of 1"):
            jobs[name]()
    with Launches() as timed:
        list(gpu_times.measure_steps(SIZES, []))
        list(gpu_times.measure_loop(SIZES))
        list(gpu_verification.measure_verification(SIZES, cases=[(1, 1), (4, 1)], V=100, megabytes=0))
    assert set(timed.variants) <= set(ahead.variants), set(timed.variants) - set(ahead.variants)


@pytest.mark.full
def test_drafters():
    *rows, check = gpu_drafters.measure_drafters(SIZES)
    trained = {row["method"] for row in rows} - {"plain", "lookup", "lookup+ngram"}
    assert "lstm" in trained and len(rows) == 2 * 2 * (3 + len(trained)) and check["passed"]
    assert all((row["same_tokens"] is None) == (row["temperature"] == 1 and row["method"] in trained) for row in rows)
    assert all(row["tokens_per_second"] > 0 and row["tokens_per_step"] >= 1 for row in rows)


def test_peers_run_or_say_why_not():
    rows = list(gpu_peers.measure_peers(SIZES))
    assert [(row["engine"], row["batch"]) for row in rows] == [
        ("transformers eager", 1), ("transformers static + compile", 1), ("transformers eager", 2)]
    assert all(row.get("us") or row.get("absent") for row in rows)
    assert rows[0]["us"]["median"] > 0


def test_a_section_that_fails_keeps_its_records(tmp_path, monkeypatch):
    def breaks(sizes, known):
        yield {"check": "first", "passed": True}
        raise RuntimeError("broken")

    monkeypatch.setitem(gpu.SECTIONS, "checks", gpu.Section(5, breaks))
    with pytest.raises(RuntimeError):
        gpu.run_section("checks", tmp_path, SIZES)
    assert gpu.read_records(tmp_path) == {"checks": [{"check": "first", "passed": True}]}


def test_sections_run_apart_and_the_tables_hold_what_came_back(tmp_path, capfd, monkeypatch):
    # a busy machine may take longer than the GPU's
    monkeypatch.setitem(gpu.SECTIONS, "model", gpu.Section(60, gpu.SECTIONS["model"].run))
    (tmp_path / "model.jsonl").write_text('{"stale": 1}\n')
    ends = gpu.run_all(tmp_path, ["model"])
    assert not any("stale" in row for row in gpu.read_records(tmp_path)["model"])
    assert ends["model"]["ended"] == "done"
    gpu.show(gpu.read_records(tmp_path) | {"checks": [{"check": "a", "passed": False, "error": "why"}]}, ends)
    said = capfd.readouterr().out
    assert "flan-t5-xl" in said and "FAILED checks: a: why" in said and said.rindex("│ XL, B=32") > said.index("FAILED")


@pytest.mark.full
def test_a_whole_run_ends_in_the_goals_and_writes_its_json(tmp_path, monkeypatch, command):
    """The command, with its sections in this process."""
    monkeypatch.setattr(gpu, "check_device", lambda device: None)
    monkeypatch.setattr(gpu, "Sizes", lambda drafters: SIZES)

    def run_here(out, names, extra):
        out.mkdir()
        for name in names:
            monkeypatch.setattr(sys, "argv", ["gpu", "--section", name, "--out", str(out), *extra])
            gpu.main()
        return {name: {"ended": "done", "seconds": 0.0} for name in names}

    monkeypatch.setattr(gpu, "run_all", run_here)
    code, out, err = command("bench", "gpu", "--out", tmp_path / "out", "--sections", "bandwidth,loop,model")
    assert code == 0, err
    *_, last = out.splitlines()
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert json.loads(last)["goals"] == found["goals"] and found["machine"] == "cpu"
    assert list(found["rows"]) == ["bandwidth", "loop", "model"] and found["goals"][-2]["found"] is None


@pytest.mark.full
def test_without_a_gpu_the_shell_command_says_so_in_a_line(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    checkout = Path(gpu.__file__).resolve().parents[2]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(["bash", checkout / "bench" / "gpu.sh"], capture_output=True, text=True,
                          env=os.environ | {"OUT": str(tmp_path), "PATH": path}, cwd=tmp_path)
    said = "foredraft: device 'cuda': no CUDA device is present here; use device 'cpu'\n"
    assert done.returncode == 2 and done.stdout == said == (tmp_path / "gpu.log").read_text()


@pytest.mark.first(1)
@pytest.mark.parametrize("shared", [False, True])
def test_tests_for_a_gpu_run_apart_or_share_the_processors_and_a_failing_one_is_told(shared, tmp_path, monkeypatch):
    if shared:
        pytest.importorskip("xdist")
    for name, holds in (("good", True), ("bad", False)):
        (tmp_path / f"test_{name}.py").write_text(
            "import os, pytest\n\n\n@pytest.mark." + "gpu\ndef test_it():\n"
            f"    assert os.environ['TRITON_INTERPRET'] == '0' and {holds}\n")
    monkeypatch.setattr(gpu, "gpu_tests", lambda: [str(tmp_path / f"test_{name}.py") for name in ("good", "bad")])
    monkeypatch.setattr(gpu, "find_spec", lambda name: shared or None)
    rows = list(gpu.SECTIONS["distribution"].run(SIZES, {}))
    assert [row["passed"] for row in rows] == ([False] if shared else [True, False])
    assert "1 failed" in rows[-1]["said"] and ("1 passed" in rows[-1]["said"]) == shared


def test_only_files_with_tests_for_a_gpu_are_collected_there():
    """A machine without the other tests' packages must not stumble over their imports."""
    files = gpu.gpu_tests()
    assert len(files) > 3 and all("hypothesis" not in open(file).read() for file in files)
