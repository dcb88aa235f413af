"""Wrong variants of the code that the tests must catch: `python -m tests.mutants [--area AREA] [--name NAME]`.

Each variant is one replacement in one file of a copy of the checkout; then the named tests run, and one of them must fail.
The compiled kernels have variants of their own in tests/engine/test_mutants.py, test_verify_distribution.py,
drafters/test_tree_distribution.py and kernels/verify/test_block.py.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Mutant:
    """In `file`, the first `old` becomes `new`; one of `tests` must fail."""

    area: str
    name: str
    file: str
    old: str
    new: str
    tests: str


POOL, CACHE, BATCHES = "engine/models/page_pool.py", "engine/models/kv_cache.py", "engine/runtime/continuous_batches.py"
OF_POOL = "tests/engine/models/test_page_pool.py tests/engine/models/test_kv_cache.py"
OF_BATCHES = "tests/engine/runtime/test_continuous_batches.py"
STATE = "engine/state.py"
OF_STATE = "tests/engine/test_state.py tests/engine/sampling/test_stop_rules.py tests/engine/test_loop.py"
RULES = "engine/sampling/token_rules.py"
OF_RULES = "tests/engine/sampling/test_token_rules.py tests/engine/sampling/test_logits_pipeline.py"
BEAMS, OF_BEAMS = "engine/runtime/beam_search.py", "tests/engine/runtime/test_beam_search.py"
SMOOTH, OF_SMOOTH = "ngram_native/smooth.py", "tests/ngram_native/test_smooth.py"
LOSSES, OF_LOSSES = "train/drafter/divergences.py", "tests/train/drafter/test_divergences.py"
JOURNAL, OF_JOURNAL = "foredraft/cli/journal.py", "tests/foredraft/cli/test_journal.py"
FILES, OF_FILES = "ngram_native/files.py", "tests/ngram_native/test_table.py tests/test_mutated_files.py"

MUTANTS = [Mutant(*one) for one in [
    ("cache", "a released page stays taken", POOL, "self._free.extend(pages)", "pass", OF_POOL),
    ("cache", "a page has two owners", POOL, "        del self._free[first:]\n", "", OF_POOL),
    ("cache", "the old pages are not released", POOL, "        self.release(sequence)\n        self.reserve(0, 0, count)",
     "        self.reserve(0, 0, count)", OF_POOL),
    ("cache", "one page too many is promised", POOL, "if count > self.free +", "if count > 1 + self.free +", OF_POOL),
    ("cache", "a part of a page is forgotten", CACHE, "return -(-source // PAGE)", "return source // PAGE", OF_POOL),
    ("cache", "a shared source has the length of the last one", CACHE,
     "        self.sources[sequence] = self.sources[owner]\n", "", f"{OF_POOL} {OF_BEAMS}"),
    ("cache", "memory for one sequence too many", CACHE, "// (sequence + page))", "// (sequence + page) + 1)", OF_POOL),
    ("scheduler", "the newest request is admitted first", BATCHES, "self.waiting.popleft()", "self.waiting.pop()",
     OF_BATCHES),
    ("scheduler", "a finished sequence is never used again", BATCHES, "            self._idle.append(sequence)\n", "",
     OF_BATCHES),
    ("scheduler", "pages are not checked before admission", BATCHES,
     "and self.cache.fits(\n                len(self.waiting[0].source))", "", OF_BATCHES),
    ("scheduler", "a finished sequence keeps its pages", BATCHES,
     "        self._target.release(sequences)\n        self._drafter.release(sequences)",
     "        self._drafter.release(sequences)", OF_BATCHES),
    ("scheduler", "a request has the seed of the one before", BATCHES, "seed=job.seed,\n", "seed=0,\n", OF_BATCHES),
    ("scheduler", "the state's counters go on in the next request", STATE, "            counter[sequence] = 0\n",
     "            pass\n", f"{OF_BATCHES} {OF_STATE}"),
    ("state", "a truncation keeps a token too many", STATE, "        self.lengths[sequence] = length\n",
     "        self.lengths[sequence] = length + 1\n", OF_STATE),
    ("state", "a truncation does not end the sequence", STATE,
     "        self.lengths[sequence] = length\n        self.finished[sequence] = True",
     "        self.lengths[sequence] = length", OF_STATE),
    ("state", "a budget is ignored", STATE, "draft_tokens if budget is None else budget.max_tokens", "draft_tokens",
     f"{OF_STATE} tests/engine/drafters/test_lookup_ngram.py"),
    ("state", "end tokens of the last request stay", STATE, "        self.end_tokens[sequence] = -1\n", "",
     f"{OF_STATE} {OF_BATCHES}"),
    ("processors", "the end token is allowed one token early", RULES, "if len(tokens) < self.length:",
     "if len(tokens) < self.length - 1:", OF_RULES),
    ("processors", "a forced token may be another", RULES,
     "            scores[:] = -np.inf\n            scores[self.tokens]", "            scores[self.tokens]", OF_RULES),
    ("processors", "begin_suppress_tokens holds everywhere", RULES, "if self.length is None or len(tokens) == self.length:",
     "if True:", OF_RULES),
    ("processors", "allowed tokens lose their scores", RULES, "scores[allowed] = kept if np.any(kept > -np.inf) else 0",
     "scores[allowed] = 0", f"{OF_RULES} tests/engine/sampling/test_constraints.py"),
    ("processors", "the source is penalised, not favoured", "engine/sampling/penalties.py",
     "self.penalty, self.source = 1 / penalty,", "self.penalty, self.source = penalty,", OF_RULES),
    ("processors", "the decay begins a token early", "engine/sampling/penalties.py",
     "self.start, self.end_tokens = start + 1,", "self.start, self.end_tokens = start,", OF_RULES),
    ("processors", "the source's n-grams are the output's", "engine/sampling/no_repeat_ngram.py",
     "self.kernel(self.source, tokens, self.n, scores)", "self.kernel(tokens, tokens, self.n, scores)", OF_RULES),
    ("processors", "a stop string ends a step late", "engine/sampling/stop_strings.py", "for end in range(seen, length):",
     "for end in range(seen + 1, length):", "tests/engine/sampling/test_stop_rules.py tests/engine/runtime/test_stream.py"),
    ("beams", "all beams start", BEAMS, "        self.scores[0] = 0\n", "        self.scores[:] = 0\n", OF_BEAMS),
    ("beams", "too few candidates", BEAMS, "max(2, 1 + int((end_tokens >= 0).sum())) * n", "n", OF_BEAMS),
    ("beams", "no length penalty", BEAMS, "float(p.length_penalty)", "0.0", OF_BEAMS),
    ("beams", "a hypothesis lacks its last token", BEAMS, "tokens[i, 1 : lengths[i]].tolist(), float",
     "tokens[i, 1 : lengths[i] - 1].tolist(), float", OF_BEAMS),
    ("smoothing", "counts are not discounted", SMOOTH,
     "own = np.maximum(a - np.array((0.0, *discount))[np.minimum(a, 3)], 0)", "own = a", OF_SMOOTH),
    ("smoothing", "continuation counts are counts", SMOOTH,
     "adjusted[level] = np.where(preceding > 0, preceding, trie.counts[level])", "pass", OF_SMOOTH),
    ("smoothing", "the discounts of 2 and 3 are exchanged", SMOOTH, "((n1, n2), (n2, n3), (n3, n4)), 1)",
     "((n1, n2), (n3, n4), (n2, n3)), 1)", OF_SMOOTH),
    ("smoothing", "the mass of discounts is lost", SMOOTH, " + left[parents[level]] * full[-1][suffixes[level]])", ")",
     OF_SMOOTH),
    ("smoothing", "Laplace adds to the context alone", SMOOTH, "(counts + extra) /", "counts /", OF_SMOOTH),
    ("losses", "the reverse KL has the wrong sign", LOSSES, "torch.where(q > 0, log_q - log_p, 0.0)",
     "torch.where(q > 0, log_p - log_q, 0.0)", OF_LOSSES),
    ("losses", "total variation without its half", LOSSES, "loss = 0.5 * (q - p).abs().sum(-1)",
     "loss = (q - p).abs().sum(-1)", OF_LOSSES),
    ("losses", "the softmax's gradient lacks its mean", LOSSES, "q * (gradient - (q * gradient).sum(-1, keepdim=True))",
     "q * gradient", OF_LOSSES),
    ("losses", "the teacher's weight is the student's", LOSSES, "(beta * p + (1 - beta) * q)", "((1 - beta) * p + beta * q)",
     OF_LOSSES),
    ("resume", "a half-written line stays", JOURNAL, "            os.ftruncate(self._fd, end)\n", "            pass\n",
     OF_JOURNAL),
    ("resume", "another run may write too", JOURNAL, "        if not lock.acquire():", "        if False:", OF_JOURNAL),
    ("resume", "a full disk leaves half a line", JOURNAL, "                    os.ftruncate(self._fd, before)",
     "                    pass", OF_JOURNAL),
    ("resume", "an article is done twice", "foredraft/cli/generate_file.py", "                if index in journal.done:",
     "                if False:", "tests/foredraft/cli/test_generate_file.py"),
    ("resume", "other settings continue", "foredraft/cli/settings_file.py", "        if was != now:", "        if False:",
     "tests/foredraft/cli/test_settings_file.py"),
    ("files", "a file is written in place", "foredraft/atomic_write.py", "    partial = _own_name(path)\n",
     "    _own_name(path)\n    partial = path\n", "tests/foredraft/test_atomic_write.py"),
    ("files", "a damaged header is read", FILES, "if hashlib.sha256(text).digest() != digest:", "if False:", OF_FILES),
    ("files", "a truncated file is read", FILES, 'if length < start + header["data_bytes"]:', "if False:", OF_FILES),
    ("files", "an ARPA line with no probability is read", "ngram_native/arpa_lines.py", "if not math.isfinite(value):",
     "if False:", "tests/ngram_native/test_arpa_lines.py"),
    ("files", "an n-gram counts twice", "ngram_native/arpa_lines.py", "    if gram in seen:", "    if False:",
     "tests/ngram_native/test_arpa_lines.py"),
]]


def copy_checkout(folder: Path) -> None:
    """The files that git tracks or would track, links kept, the embedded model linked."""
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=CHECKOUT, capture_output=True, text=True,
                           check=True).stdout.splitlines()
    for name in names:
        if os.path.lexists(CHECKOUT / name) and not name.startswith("assets/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(CHECKOUT / name, folder / name, follow_symlinks=False)
    (folder / "assets").symlink_to(CHECKOUT / "assets")


def killer(mutant: Mutant, folder: Path) -> str:
    """The first test that fails on the mutant, or ""; the file is restored."""
    path = folder / mutant.file
    text = path.read_text()
    assert mutant.old in text, f"the mutant's line is gone: {mutant.name}"
    path.write_text(text.replace(mutant.old, mutant.new, 1))
    try:
        return failed_test(mutant.tests, folder)
    finally:
        path.write_text(text)


def failed_test(tests: str, folder: Path) -> str:
    """The first test that fails, or ""; tests that are marked `full` or `slow` do not run."""
    line = [sys.executable, "-m", "pytest", "-q", "-x", "-n0", "-p", "no:cacheprovider", "-m", "not slow and not full"]
    done = subprocess.run([*line, *tests.split()], cwd=folder, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1",
                                            # compiled kernels are deleted with the copy
                                            "NUMBA_CACHE_DIR": str(folder / ".compiled")})
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    assert done.returncode == bool(found), done.stdout + done.stderr
    return found[1].removeprefix("tests/") if found else ""


def main() -> None:
    """Print a line for each mutant; exit code 1 if one survives."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    areas = list(dict.fromkeys(one.area for one in MUTANTS))
    parser.add_argument("--area", action="append", choices=areas, help="repeatable")
    parser.add_argument("--name", default="", help="only variants whose names contain this text")
    given = parser.parse_args()
    chosen = [one for one in MUTANTS if (not given.area or one.area in given.area) and given.name in one.name]
    killed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_checkout(folder)
        for tests in dict.fromkeys(one.tests for one in chosen):
            if found := failed_test(tests, folder):
                sys.exit(f"{found}: fails on the right code; mend it first")
        print("| area | wrong variant | killed by | seconds |\n|---|---|---|---|")
        for mutant in chosen:
            began = time.monotonic()
            found = killer(mutant, folder)
            killed += bool(found)
            seconds = time.monotonic() - began
            print(f"| {mutant.area} | {mutant.name} | {found or '(survives)'} | {seconds:.0f} |", flush=True)
    print(f"{killed} of {len(chosen)} killed")
    sys.exit(killed < len(chosen))


if __name__ == "__main__":
    main()
