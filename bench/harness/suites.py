"""Named settings of `foredraft bench run`, so that machines can be compared."""

from __future__ import annotations

from foredraft.errors import UserError

DEFAULTS = {"limit": None, "batch_sizes": "1", "temperatures": "0", "draft_tokens": "5", "repeats": 3, "warm_up": 2,
            "methods": None, "device": "cpu", "dtype": "float32", "footprints": False}
OURS = "plain,lookup,ngram,lookup+ngram"
SUITES = {
    # under a minute with the embedded target
    "quick": {"limit": 8, "repeats": 1, "methods": "plain,lookup,ngram,hf-greedy"},
    # all that runs on a CPU, one request and batches, greedy and sampled
    "cpu": {"limit": 100, "batch_sizes": "1,8", "temperatures": "0,1", "footprints": True},
    "gpu": {"limit": 200, "batch_sizes": "1,8,32", "temperatures": "0,1", "device": "cuda", "dtype": "bfloat16",
            "methods": f"{OURS},hf-greedy,hf-static-compiled,hf-prompt-lookup,hf-assisted", "footprints": True},
    # as papers report: one request at a time, several K, many articles
    "paper": {"limit": 500, "temperatures": "0,1", "draft_tokens": "3,5,7", "footprints": True,
              "methods": f"{OURS},hf-greedy,hf-prompt-lookup,hf-assisted"},
    # Spec-Bench (Xia et al. 2024): 80 summaries, one request at a time, greedy, 3 warm-ups, 3 runs
    "spec-bench": {"limit": 80, "batch_sizes": "1", "temperatures": "0", "repeats": 3, "warm_up": 3},
}


def chosen(suite: str | None, given: dict) -> dict:
    """Each setting as given (if not None), else the suite's, else the default. UserError: no such suite."""
    if suite is not None and suite not in SUITES:
        raise UserError(f"--suite: no suite named {suite!r}; choose from {', '.join(SUITES)}")
    return DEFAULTS | SUITES.get(suite, {}) | {name: value for name, value in given.items() if value is not None}
