"""Loading time, first-token latency and peak memory of a method, in a process of its own.

    python -m foredraft.bench.harness.footprint '{"method": ..., "target": ..., "settings": {...}, "source": [...]}'
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import torch

from foredraft.bench.harness.methods import OURS, Absent, build
from foredraft.bench.harness.settings import Settings
from foredraft.memory import peak_resident_bytes

TIMES, LONGEST = 5, 300


def measure(name: str, model, settings: Settings, source: Sequence[int]) -> dict | None:
    """Figures of the method in a process of its own; None if that fails or takes over 5 minutes.

    load_seconds: the method's libraries and weights. first_token_ms: encoding and one token of `source`, median of 5 after a
    warm-up. peak_bytes: peak resident memory of the process, libraries included, or on a GPU the peak that torch allocated
    (None where the system does not report it).
    """
    wanted = {"method": name, "target": str(model.path), "dtype": model.dtype, "weights": model.describe()["weights"],
              "settings": asdict(settings), "source": list(source)}
    try:
        done = subprocess.run([sys.executable, "-m", "foredraft.bench.harness.footprint", json.dumps(wanted)],
                              capture_output=True, text=True, timeout=LONGEST, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None
    return json.loads(done.stdout.splitlines()[-1])


def main(wanted: dict) -> dict:
    settings = replace(Settings(**wanted["settings"]), batch_size=1, max_new_tokens=1)
    start = time.perf_counter()
    if wanted["method"].partition(":")[0] in OURS:
        from foredraft.engine.load import load

        model = load(wanted["target"], None, device=settings.device, dtype=wanted["dtype"], weights=wanted["weights"])
    else:
        model = SimpleNamespace(path=Path(wanted["target"]), dtype=wanted["dtype"])
    method = build(wanted["method"], model, settings)
    loaded, times = time.perf_counter() - start, []
    for _ in range(TIMES + 1):
        start = time.perf_counter()
        output = method.run([wanted["source"]], 0)
        times.append(output.wall if output.wall is not None else time.perf_counter() - start)
    on_gpu = settings.device.startswith("cuda")
    peak = torch.cuda.max_memory_allocated(settings.device) if on_gpu else peak_resident_bytes()
    return {"load_seconds": loaded, "first_token_ms": median(times[1:]) * 1e3, "peak_bytes": peak}


if __name__ == "__main__":
    try:
        print(json.dumps(main(json.loads(sys.argv[1]))))
    except Absent as reason:
        sys.exit(str(reason))
