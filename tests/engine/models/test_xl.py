"""The user's real target fits: FLAN-T5-XL's geometry, sharded, bfloat16, random weights, within 16 GiB.

With FOREDRAFT_RECORDS=FOLDER the figures are kept in FOLDER/flan-t5-xl-geometry.json.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from foredraft.bench.harness import machine
from foredraft.bench.harness.geometry import write_checkpoint

DECODE = """
import json, resource, sys, time
from pathlib import Path
import torch
from foredraft.engine.models.t5_weights import load_weights
import foredraft

def anonymous():
    line = next(l for l in open("/proc/self/status") if l.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

foredraft.load  # the libraries are not the weights
before, began = anonymous(), time.perf_counter()
model = foredraft.load(sys.argv[1], drafter="lookup", dtype="bfloat16")
loaded, seconds = anonymous() - before, time.perf_counter() - began
model.target.end_token = -1
source = [100, 7, 8, 9, 100, 7, 8, 9, 50, 60, 1] * 4
fast = model.generate([source], max_new_tokens=8, draft_tokens=4)
plain = model.with_drafter(None).generate([source], max_new_tokens=8)
print(json.dumps(dict(
    dtype="bfloat16", draft_tokens=4,
    parameters=model.target.weights.parameters(), load_seconds=seconds, loaded_bytes=loaded,
    peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, steps=fast.stats.steps,
    equal=fast.token_ids == plain.token_ids, emitted=fast.stats.emitted,
    step_seconds=plain.stats.seconds["verify"] / plain.stats.steps)))
"""


@pytest.mark.slow
def test_flan_t5_xl_geometry_decodes_within_16_gib(tmp_path, capsys):
    write_checkpoint("flan-t5-xl", tmp_path, torch.bfloat16)
    done = subprocess.run([sys.executable, "-c", DECODE, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    with capsys.disabled():
        print("\n" + done.stdout)
    if folder := os.environ.get("FOREDRAFT_RECORDS"):
        made = {"command": "python -m pytest -m slow tests/engine/test_xl.py", "machine": machine.describe()}
        (Path(folder) / "flan-t5-xl-geometry.json").write_text(json.dumps(made | figures, indent=1) + "\n")
    weights = 2 * figures["parameters"]
    assert figures["parameters"] > 2.8e9
    assert figures["emitted"] == 8 and figures["equal"]
    assert figures["peak_bytes"] < 16 * 2**30
    # one copy of the weights and at most a tenth beside it
    assert figures["loaded_bytes"] < 1.1 * weights
