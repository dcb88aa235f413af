"""Which sublayers the target's own drafts should skip: Bayesian optimisation on validation articles (Zhang et al. 2023,
section 3.2), by optuna's tree-structured Parzen estimator (Bergstra et al. 2011).

A trial decodes the articles with a skip set; what it accepts at each place is exact, and repeatable from the seeds. What a
draft and a round cost is measured once, sublayer by sublayer and by rows, so that a busy machine cannot lead the search
astray. The objective is the tokens a second that the two predict, at the K that predicts most.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from foredraft.engine.drafters.layer_skip import SelfDrafter
from foredraft.engine.drafters.none import NoDrafter
from foredraft.engine.drafters.skip_mask import SUBLAYERS, THRESHOLD, SkipSet, format_skip, parse_skip
from foredraft.engine.generate import Model
from foredraft.engine.loop import decode
from foredraft.engine.models.checkpoint import weights_hash
from foredraft.engine.state import DecodeState, Draft
from foredraft.engine.verify import verify
from foredraft.errors import UserError
from foredraft.train.drafter.compact import frequent_tokens

# Goals of the adaptive exit and starts of its threshold that are tried for the skip set that was found, beside a fixed K:
# the threshold moves by a thousandth a round, so that its start counts.
GOALS, STARTS = (0.8, 0.9, 0.95), (0.6, 0.8, 0.95, 0.99)
# Timed repeats of each part; the shortest counts, for others may be at work on the machine.
REPEATS = 25


@dataclass(frozen=True)
class Costs:
    """Seconds, for one sequence: base, of a drafted id with everything skipped; sublayers [3], of one more of each kind;
    passes [K + 1], of a round of 1 to K + 1 rows without its drafts."""

    base: float
    sublayers: tuple[float, ...]
    passes: tuple[float, ...]

    def draft(self, kept: np.ndarray) -> float:
        """Of one drafted id."""
        return self.base + float(kept.sum(0) @ np.array(self.sublayers))


class Bench:
    """Articles admitted to a target once, decoded over and over; `rows` at a time share its caches."""

    def __init__(self, model: Model, sources: list[np.ndarray], max_new_tokens: int, draft_tokens: int, draft_vocab: int,
                 temperature: float = 0.0):
        self.target, self.limit, self.K, self.temperature = model.target, max_new_tokens + 1, draft_tokens, temperature
        self.sources = [torch.from_numpy(source.astype(np.int64)) for source in sources]
        self.layers = self.target.config.num_decoder_layers
        self.target.reserve(len(sources), self.limit, draft_tokens, max(map(len, sources)))
        self.ids = None
        with torch.inference_mode():
            self.encoded = self.target.admit(range(len(sources)), self.sources)
            self.truth = self._rows(self._decode(NoDrafter(), 0))
        if draft_vocab:
            self.ids = frequent_tokens(self.truth, draft_vocab, self.target.config.vocab_size, self.target.end_token)

    def drafter(self, kept: np.ndarray, goal: float = 0.0, threshold: float = THRESHOLD) -> SelfDrafter:
        drafter = SelfDrafter(self.target, kept, goal, threshold, self.ids)
        drafter.admit(range(len(self.sources)), self.sources, self.sources)
        return drafter

    def _state(self, rows: int, K: int) -> DecodeState:
        zeros = torch.zeros(rows, dtype=torch.int64)
        return DecodeState(
            limits=zeros + self.limit, draft_tokens=zeros + K, temperature=torch.full((rows,), float(self.temperature)),
            top_k=zeros, top_p=torch.ones(rows), seeds=torch.arange(rows), start_token=self.target.start_token,
            end_token=self.target.end_token, width=self.target.config.d_model)

    def _decode(self, drafter, K: int, after_step: Callable[[DecodeState], None] | None = None) -> DecodeState:
        state = self._state(len(self.sources), K)
        decode(state, self.target, drafter, after_step)
        return state

    @staticmethod
    def _rows(state: DecodeState) -> list[np.ndarray]:
        return [ids[1:length] for ids, length in zip(state.tokens.numpy(), state.lengths.tolist(), strict=True)]

    @torch.inference_mode()
    def accepted(self, kept: np.ndarray) -> np.ndarray:
        """[K]: the share of the tested drafts of each place that stood, by decoding with K ids a round."""
        state = self._decode(self.drafter(kept), self.K)
        self._check(state)
        return (state.accepted_at.sum(0) / state.tested_at.sum(0).clamp_min(1)).numpy()

    @torch.inference_mode()
    def adaptive(self, kept: np.ndarray, goal: float, start: float, K: int, costs: Costs) -> tuple[float, float]:
        """Predicted tokens a second when drafts stop early, and where the threshold came to stand."""
        drafter, before, seconds = self.drafter(kept, goal, start), torch.zeros(len(self.sources), dtype=torch.int64), 0.0
        passes = np.array(costs.passes)

        def count(state: DecodeState) -> None:
            nonlocal before, seconds
            lengths = (state.drafted - before)[state.last_counts > 0].numpy()
            before = state.drafted.clone()
            seconds += float(passes[lengths].sum()) + float(lengths.sum()) * costs.draft(kept)

        state = self._decode(drafter, K, count)
        self._check(state)
        return int((state.lengths - 1).sum()) / seconds, drafter.threshold

    def _check(self, state: DecodeState) -> None:
        # what was sampled follows the target's distribution, with noise of its own
        same = zip(self._rows(state), self.truth, strict=True)
        if self.temperature == 0 and not all(np.array_equal(ours, theirs) for ours, theirs in same):
            raise AssertionError("drafts changed the target's greedy output")

    @torch.inference_mode()
    def costs(self) -> Costs:
        """Measured on the first article, in the middle of its output, each part in turn."""
        state = self._state(1, self.K)
        middle = max(2, len(self.truth[0]) // 2)
        state.tokens[0, 1:middle] = torch.from_numpy(self.truth[0][: middle - 1])
        state.lengths[0] = middle
        masks = [np.zeros((self.layers, len(SUBLAYERS)), np.bool_) for _ in range(len(SUBLAYERS) + 1)]
        for place in range(len(SUBLAYERS)):
            masks[place + 1][:, place] = True
        work: list[Callable[[], object]] = []
        for mask in masks:
            drafter = self.drafter(mask)
            work.append(lambda drafter=drafter: drafter.draft(state))
        for width in range(self.K + 1):
            nothing = Draft.empty(1, width)
            nothing.lengths[:] = width
            work.append(lambda draft=nothing: verify(state, draft, self.target.decode(*state.inputs(draft)), self.target))
        taken = np.zeros((REPEATS, len(work)))
        for turn in range(-1, REPEATS):
            for number, call in enumerate(work):
                began = time.perf_counter()
                call()
                if turn >= 0:
                    taken[turn, number] = time.perf_counter() - began
        seconds = taken.min(0)
        base, *kinds = seconds[: len(masks)] / self.K
        return Costs(float(base), tuple(max(float(kind - base) / self.layers, 0.0) for kind in kinds),
                     tuple(seconds[len(masks) :].tolist()))


def predicted(accepted: np.ndarray, draft: float, passes: tuple[float, ...]) -> tuple[float, int]:
    """(tokens a second, K): 1 + the sum over k <= K of the product of the first k places' acceptance, over the seconds of K
    drafts and a pass of K + 1 rows, at the best K from 1 on."""
    tokens = 1 + np.cumsum(np.cumprod(accepted))
    speeds = [tokens[K - 1] / (K * draft + passes[K]) for K in range(1, len(accepted) + 1)]
    best = int(np.argmax(speeds))
    return float(speeds[best]), best + 1


def first_tries(layers: int) -> list[np.ndarray]:
    """Skip sets that a search starts from: nothing, the later half, every other layer, all cross-attention but one layer's,
    all feed-forward but one's."""
    tries = [np.ones((layers, len(SUBLAYERS)), np.bool_) for _ in range(5)]
    tries[1][(layers + 1) // 2 :] = False
    tries[2][1::2] = False
    tries[3][1:, SUBLAYERS.index("c")] = False
    tries[4][1:, SUBLAYERS.index("f")] = False
    return tries


def tune_skip(model: Model, sources: list[np.ndarray], out: str | Path, trials: int = 100, max_new_tokens: int = 128,
              draft_tokens: int = 8, draft_vocab: int = 1024, temperature: float = 0.0, seed: int = 0,
              progress: bool = True) -> SkipSet:
    """Search, and write the best skip set to `out`; what was tried lies beside it in `out`.journal, from which the same
    call goes on until `trials` are done. UserError: optuna is missing, the journal is of another search.

    sources: n id vectors that end in `</s>`. draft_tokens: the largest K. draft_vocab: ids that are drafted beside those of
    a source, the most frequent ones of the target's own outputs; 0 is all. temperature: of the requests to come.
    """
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError:
        raise UserError("tune-skip needs optuna: pip install 'foredraft[tune]'") from None
    from tqdm import tqdm

    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    journal = out.with_name(out.name + ".journal")
    bench = Bench(model, sources, max_new_tokens, draft_tokens, draft_vocab, temperature)
    digest = hashlib.sha256(b"|".join(source.tobytes() for source in sources)).hexdigest()[:16]
    settings = {"target": weights_hash(model.path), "weights": model.target.weights.stored, "articles": digest,
                "max_new_tokens": max_new_tokens, "draft_tokens": draft_tokens, "draft_vocab": draft_vocab,
                "temperature": temperature}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True)
        storage = JournalStorage(JournalFileBackend(str(journal)))
    study = optuna.create_study(study_name="skip", storage=storage, sampler=sampler, direction="maximize",
                                load_if_exists=True)
    if study.user_attrs:
        if study.user_attrs["settings"] != settings:
            raise UserError(f"{journal}: is of another search (target, articles or settings differ); give another --out, or "
                            "delete it")
        costs = Costs(**{name: tuple(value) if isinstance(value, list) else value
                         for name, value in study.user_attrs["costs"].items()})
        sampler.reseed_rng()
    else:
        costs = bench.costs()
        study.set_user_attr("costs", json.loads(json.dumps(asdict(costs))))
        study.set_user_attr("settings", settings)
        for kept in first_tries(bench.layers):
            study.enqueue_trial(_parameters(kept))
    known = {trial.user_attrs["skip"]: (trial.value, trial.user_attrs["draft_tokens"], trial.user_attrs["accepted"])
             for trial in study.trials if trial.state.is_finished() and trial.value is not None}

    def objective(trial) -> float:
        kept = np.array([[not trial.suggest_categorical(f"{layer}{letter}", [False, True]) for letter in SUBLAYERS]
                         for layer in range(bench.layers)])
        skip = format_skip(kept)
        if skip not in known:
            accepted = bench.accepted(kept)
            speed, K = predicted(accepted, costs.draft(kept), costs.passes)
            known[skip] = (speed, K, accepted.round(4).tolist())
        speed, K, accepted = known[skip]
        for name, value in (("skip", skip), ("draft_tokens", K), ("accepted", accepted)):
            trial.set_user_attr(name, value)
        return speed

    def finished() -> int:
        return sum(trial.state == optuna.trial.TrialState.COMPLETE for trial in study.trials)

    done = finished()
    with tqdm(total=trials, initial=min(done, trials), desc="skip sets", unit="", disable=not progress) as bar:
        for _ in range(done, trials):
            study.optimize(objective, n_trials=1)
            bar.update()
            bar.set_postfix_str(f"{study.best_value:.0f} tok/s, skips {study.best_trial.user_attrs['skip'] or 'nothing'}")
    return _result(bench, costs, study.best_trial, finished(), settings, out)


def _parameters(kept: np.ndarray) -> dict[str, bool]:
    return {f"{layer}{letter}": not kept[layer, place] for layer in range(len(kept))
            for place, letter in enumerate(SUBLAYERS)}


def _result(bench: Bench, costs: Costs, best, trials: int, settings: dict, out: Path) -> SkipSet:
    skip, K = best.user_attrs["skip"], best.user_attrs["draft_tokens"]
    kept = parse_skip(skip, bench.layers)
    exits = {(0.0, THRESHOLD): bench.adaptive(kept, 0.0, THRESHOLD, K, costs)} | {
        (goal, start): bench.adaptive(kept, goal, start, bench.K, costs) for goal in GOALS for start in STARTS}
    goal, start = max(exits, key=lambda of: exits[of][0])
    speed, threshold = exits[goal, start]
    plain = 1 / costs.passes[0]
    figures = {
        "predicted": {"plain": plain, "fixed": exits[0.0, THRESHOLD][0], "best": speed, "speed_up": speed / plain,
                      "by_exit": [[*of, *found] for of, found in exits.items()]},
        "accepted_at": best.user_attrs["accepted"], "costs": asdict(costs), "draft_seconds": costs.draft(kept),
        "articles": len(bench.sources), "trials": trials, "settings": settings}
    found = SkipSet(skip, settings["target"], goal, threshold, bench.K if goal else K,
                    () if bench.ids is None else tuple(bench.ids.tolist()), figures)
    found.save(out)
    return found
