"""The search for the sublayers that the target's own drafts skip.

Draft & Verify (Zhang et al. 2023, section 3.2): Bayesian optimisation on validation articles, here by optuna's
tree-structured Parzen estimator (Bergstra et al. 2011). A trial decodes the articles with a skip set and returns the exact
acceptance rate at each offset of a draft. The costs of drafts and passes are measured once, so that other load on the
machine does not distort the search. The objective is the predicted number of tokens a second at the best K.
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
from foredraft.engine.drafters.skip_mask import SUBLAYERS, THRESHOLD, SkipSet, format_skip, parse_skip
from foredraft.engine.generate import Model
from foredraft.engine.models.checkpoint import weights_hash
from foredraft.engine.state import DecodeState, Draft
from foredraft.engine.verify import verify
from foredraft.errors import UserError
from foredraft.train.draft_vocab import frequent_tokens
from foredraft.train.tune.trial_decoder import TrialDecoder

# Acceptance goals and initial thresholds of the adaptive exit that are tried with the best skip set, beside a fixed K. The
# threshold moves by a thousandth a step, so its initial value matters.
GOALS, STARTS = (0.8, 0.9, 0.95), (0.6, 0.8, 0.95, 0.99)
# Repetitions of each timing, of which the minimum is used.
REPEATS = 25


@dataclass(frozen=True)
class Costs:
    """Measured times for one sequence, in seconds.

    Attributes
    ----------
    base
        A drafted token with all sublayers skipped.
    sublayers
        [3], one further sublayer of each kind.
    passes
        [K + 1], pass and verification of 1 to K + 1 query positions.
    """

    base: float
    sublayers: tuple[float, ...]
    passes: tuple[float, ...]

    def draft(self, kept: np.ndarray) -> float:
        """Seconds of a drafted token with the sublayers `kept` [L, 3] bool."""
        return self.base + float(kept.sum(0) @ np.array(self.sublayers))


class SkipTrials(TrialDecoder):
    """Trials of skip sets; `draft_vocab` is the size of the draft vocabulary (0: all tokens)."""

    def __init__(self, model: Model, sources: list[np.ndarray], max_new_tokens: int, draft_tokens: int, draft_vocab: int,
                 temperature: float = 0.0):
        super().__init__(model, sources, max_new_tokens, draft_tokens, temperature)
        self.layers = self.target.config.num_decoder_layers
        self.tokens = frequent_tokens(self.outputs, draft_vocab, self.target.config.vocab_size,
                                      self.target.end_token) if draft_vocab else None

    def drafter(self, kept: np.ndarray, goal: float = 0.0, threshold: float = THRESHOLD) -> SelfDrafter:
        """A drafter that computes the sublayers `kept` [L, 3] bool."""
        drafter = SelfDrafter(self.target, kept, goal, threshold, self.tokens)
        drafter.admit(range(len(self.sources)), self.sources, self.sources)
        return drafter

    @torch.inference_mode()
    def accepted(self, kept: np.ndarray) -> np.ndarray:
        """[K]: acceptance rate of verified tokens at each offset of a draft, with K tokens a step."""
        state = self._decode(self.drafter(kept), self.K)
        self._check(state)
        return (state.accepted_at.sum(0) / state.tested_at.sum(0).clamp_min(1)).numpy()

    @torch.inference_mode()
    def adaptive(self, kept: np.ndarray, goal: float, start: float, K: int, costs: Costs) -> tuple[float, float]:
        """(predicted tokens a second, final threshold) with drafts that stop early."""
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

    @torch.inference_mode()
    def costs(self) -> Costs:
        """Measure the costs, interleaved, in the middle of the first article's output."""
        state = self._middle_state(self.K)
        masks = [np.zeros((self.layers, len(SUBLAYERS)), np.bool_) for _ in range(len(SUBLAYERS) + 1)]
        for kind in range(len(SUBLAYERS)):
            masks[kind + 1][:, kind] = True
        work: list[Callable[[], object]] = []
        for mask in masks:
            drafter = self.drafter(mask)
            work.append(lambda drafter=drafter: drafter.draft(state))
        for width in range(self.K + 1):
            nothing = Draft.empty(1, width)
            nothing.lengths[:] = width
            work.append(lambda draft=nothing: verify(state, draft, self.target.decode(*state.inputs(draft)), self.target))
        taken = np.zeros((REPEATS, len(work)))
        for repeat in range(-1, REPEATS):
            for number, call in enumerate(work):
                began = time.perf_counter()
                call()
                if repeat >= 0:
                    taken[repeat, number] = time.perf_counter() - began
        seconds = taken.min(0)
        base, *kinds = seconds[: len(masks)] / self.K
        return Costs(float(base), tuple(max(float(kind - base) / self.layers, 0.0) for kind in kinds),
                     tuple(seconds[len(masks) :].tolist()))


def predicted(accepted: np.ndarray, draft: float, passes: tuple[float, ...]) -> tuple[float, int]:
    """Predicted speed at the best K.

    Parameters
    ----------
    accepted
        [K], acceptance rate at each offset of a draft.
    draft
        Seconds of a drafted token.
    passes
        [K + 1], seconds of a pass over 1 to K + 1 query positions.

    Returns
    -------
    speed : float
        Tokens a second: 1 + sum over k <= K of the product of the first k rates, divided by the time of K drafted tokens and
        a pass over K + 1 positions.
    K : int
        The best K, at least 1.
    """
    tokens = 1 + np.cumsum(np.cumprod(accepted))
    speeds = [tokens[K - 1] / (K * draft + passes[K]) for K in range(1, len(accepted) + 1)]
    best = int(np.argmax(speeds))
    return float(speeds[best]), best + 1


def first_tries(layers: int) -> list[np.ndarray]:
    """[L, 3] masks of kept sublayers with which a search begins.

    Skipped are: nothing, the second half, every second layer, cross-attention or feed-forward of all layers but the first.
    """
    tries = [np.ones((layers, len(SUBLAYERS)), np.bool_) for _ in range(5)]
    tries[1][(layers + 1) // 2 :] = False
    tries[2][1::2] = False
    tries[3][1:, SUBLAYERS.index("c")] = False
    tries[4][1:, SUBLAYERS.index("f")] = False
    return tries


def tune_skip(model: Model, sources: list[np.ndarray], out: str | Path, trials: int = 100, max_new_tokens: int = 128,
              draft_tokens: int = 8, draft_vocab: int = 1024, temperature: float = 0.0, seed: int = 0,
              progress: bool = True) -> SkipSet:
    """Search for the best skip set.

    Parameters
    ----------
    model
        The target.
    sources
        n token sequences that end in `</s>`.
    out
        File of the skip set. `out`.journal contains the trials; the same call continues from it.
    trials
        Number of trials.
    max_new_tokens
        Longest output.
    draft_tokens
        The largest K.
    draft_vocab
        Size of the draft vocabulary, the most frequent tokens of the target's outputs, to which each source's tokens are
        added; 0 is all.
    temperature
        Of the requests that the skip set is made for.
    seed
        Seed of the sampler.
    progress
        Whether to show a progress bar.

    Returns
    -------
    SkipSet

    Raises
    ------
    UserError
        optuna is missing, or the journal belongs to another search.
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
    runner = SkipTrials(model, sources, max_new_tokens, draft_tokens, draft_vocab, temperature)
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
            raise UserError(f"{journal}: belongs to another search (other target, articles or settings); give another "
                            "--out, or delete it")
        costs = Costs(**{name: tuple(value) if isinstance(value, list) else value
                         for name, value in study.user_attrs["costs"].items()})
        sampler.reseed_rng()
    else:
        costs = runner.costs()
        study.set_user_attr("costs", json.loads(json.dumps(asdict(costs))))
        study.set_user_attr("settings", settings)
        for kept in first_tries(runner.layers):
            study.enqueue_trial(_parameters(kept))
    known = {trial.user_attrs["skip"]: (trial.value, trial.user_attrs["draft_tokens"], trial.user_attrs["accepted"])
             for trial in study.trials if trial.state.is_finished() and trial.value is not None}

    def objective(trial) -> float:
        kept = np.array([[not trial.suggest_categorical(f"{layer}{letter}", [False, True]) for letter in SUBLAYERS]
                         for layer in range(runner.layers)])
        skip = format_skip(kept)
        if skip not in known:
            accepted = runner.accepted(kept)
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
    return _result(runner, costs, study.best_trial, finished(), settings, out)


def _parameters(kept: np.ndarray) -> dict[str, bool]:
    return {f"{layer}{letter}": not kept[layer, kind] for layer in range(len(kept))
            for kind, letter in enumerate(SUBLAYERS)}


def _result(runner: SkipTrials, costs: Costs, best, trials: int, settings: dict, out: Path) -> SkipSet:
    skip, K = best.user_attrs["skip"], best.user_attrs["draft_tokens"]
    kept = parse_skip(skip, runner.layers)
    exits = {(0.0, THRESHOLD): runner.adaptive(kept, 0.0, THRESHOLD, K, costs)} | {
        (goal, start): runner.adaptive(kept, goal, start, runner.K, costs) for goal in GOALS for start in STARTS}
    goal, start = max(exits, key=lambda of: exits[of][0])
    speed, threshold = exits[goal, start]
    plain = 1 / costs.passes[0]
    figures = {
        "predicted": {"plain": plain, "fixed": exits[0.0, THRESHOLD][0], "best": speed, "speed_up": speed / plain,
                      "by_exit": [[*of, *found] for of, found in exits.items()]},
        "accepted_at": best.user_attrs["accepted"], "costs": asdict(costs), "draft_seconds": costs.draft(kept),
        "articles": len(runner.sources), "trials": trials, "settings": settings}
    found = SkipSet(skip, settings["target"], goal, threshold, runner.K if goal else K,
                    () if runner.tokens is None else tuple(runner.tokens.tolist()), figures)
    found.save(out)
    return found
