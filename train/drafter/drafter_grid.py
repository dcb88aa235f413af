"""The grid of drafters and distillation methods, trained on the same articles in the same steps.

Every run has a folder. A finished run is skipped and an interrupted run is continued. Several processes may share a grid: a
process locks the folder of the run that it trains.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from foredraft.atomic_write import write_atomic
from foredraft.engine.drafters.registry import trained_kinds
from foredraft.errors import UserError
from foredraft.output_lock import OutputLock
from foredraft.train.data.drafter_data import Articles
from foredraft.train.drafter.distillation_methods import METHODS
from foredraft.train.drafter.distillation_trainer import DrafterTrainingConfig
from foredraft.train.drafter.train_drafter import train_drafter
from foredraft.train.drafter.training_context import TrainingContext
from foredraft.train.history import machine
from foredraft.train.run_folder import RUN

DRAFTERS = ("ngram", "cnn", "lstm", "t5small", "t5shallow")
KNOWN = ("ngram", *trained_kinds())
BASELINE = "baseline"
RESULT = "result.json"

# Learning rates by drafter, the same for the baseline and all methods.
LEARNING_RATES = {"cnn": 1e-3, "lstm": 1e-3, "head": 1e-3, "t5small": 5e-4, "t5shallow": 5e-4}


@dataclass(frozen=True)
class DrafterGrid:
    """Runs of drafters x (baseline and methods) x seeds.

    Attributes
    ----------
    drafters, methods, seeds
        The axes.
    config
        Configuration of all runs; drafter, method and seed are set by the run.
    sizes, steps
        By drafter, entries of its configuration and a number of steps that differ from `config`.
    learning_rate
        Of all drafters; None is LEARNING_RATES.
    evaluate_every
        Updates between evaluations and checkpoints.
    ngram_order
        Order of the n-gram tables.
    """

    drafters: tuple[str, ...] = DRAFTERS
    methods: tuple[str, ...] = (BASELINE, *METHODS)
    seeds: tuple[int, ...] = (0,)
    config: DrafterTrainingConfig = DrafterTrainingConfig()
    sizes: tuple[tuple[str, tuple[tuple[str, object], ...]], ...] = ()
    steps: tuple[tuple[str, int], ...] = ()
    learning_rate: float | None = None
    evaluate_every: int = 100
    ngram_order: int = 4

    def __post_init__(self):
        for flag, given, known in (("--drafters", self.drafters, KNOWN),
                                   ("--methods", self.methods, (BASELINE, *METHODS))):
            for name in given:
                if name not in known:
                    raise UserError(f"{flag}: {name} does not exist; use {', '.join(known)}")

        for name, _ in self.steps:
            if name not in LEARNING_RATES:
                raise UserError(f"--steps-of: {name} is not trained in steps; use {', '.join(LEARNING_RATES)}")

    def runs(self) -> list[tuple[str, str, int]]:
        """(drafter, method, seed) of every run, the baselines first.

        An n-gram table has two runs: it counts the human summaries (baseline) or the target's own (Seq_KD).
        """
        return [(drafter, method, seed) for seed in self.seeds for method in self.methods for drafter in self.drafters
                if drafter != "ngram" or (method in (BASELINE, "Seq_KD") and seed == self.seeds[0])]

    def config_of(self, drafter: str, method: str, seed: int) -> DrafterTrainingConfig:
        """The configuration of a run: cross-entropy on human summaries for a baseline, else the method's term alone."""
        base = self.config.method
        steps = dict(self.steps).get(drafter, self.config.steps)
        if method == BASELINE:
            distillation = replace(base, loss=1.0, kd_loss=0.0)
        else:
            distillation = replace(base, loss=0.0, kd_loss=1.0, distill_method=method)
        return replace(self.config, drafter=drafter, method=distillation, seed=seed, sizes=dict(self.sizes).get(drafter, ()),
                       steps=steps, warmup_steps=min(self.config.warmup_steps, steps),
                       decay_steps=self.config.decay_steps * steps // self.config.steps,
                       learning_rate=self.learning_rate or LEARNING_RATES[drafter])


def run_folder(out: Path, drafter: str, method: str, seed: int) -> Path:
    """The folder of a run."""
    return out / "runs" / f"{drafter}-{method}-s{seed}"


def result_of(folder: Path) -> dict | None:
    """The result of a finished run."""
    path = folder / RESULT
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def train_grid(grid: DrafterGrid, context: TrainingContext, articles: Articles, heldout: dict[float, Articles], out: Path,
               report: Callable[[str], None] = print) -> tuple[list[dict], list[str]]:
    """Train the runs that are not finished; a run that fails does not stop the others.

    Parameters
    ----------
    grid
        The runs.
    context
        The target.
    articles
        Training data.
    heldout
        Temperature to articles with the target's output at that temperature, on which alpha is measured.
    out
        Folder of the grid.
    report
        Called with a line of text for every run.

    Returns
    -------
    results : list of dict
        Of all finished runs.
    failures : list of str
        A line for every run that failed.

    Raises
    ------
    UserError
        A finished run has other settings.
    KeyboardInterrupt
        A run was interrupted by a signal.
    """
    wanted, failures = grid.runs(), []
    for number, (drafter, method, seed) in enumerate(wanted, 1):
        folder = run_folder(out, drafter, method, seed)
        folder.mkdir(parents=True, exist_ok=True)
        lock = OutputLock(folder / RUN)
        if not lock.acquire():
            continue
        try:
            config = None if drafter == "ngram" else asdict(grid.config_of(drafter, method, seed))
            described = json.loads(json.dumps({
                "drafter": drafter, "method": method, "seed": seed, "target_hash": context.hash, "articles": len(articles),
                "recipe": config or {"order": grid.ngram_order}}))
            if (known := result_of(folder)) is not None:
                if any(known.get(name) != value for name, value in described.items()):
                    raise UserError(f"{folder}: was trained with other settings or for another target; give another --out, "
                                    "or delete the folder")
                continue
            report(f"[{number}/{len(wanted)}] {folder.name}")
            try:
                figures = _run(grid, context, articles, heldout, folder, drafter, method, seed)
            except Exception as error:  # a failure of one run does not stop the others
                failures.append(f"{folder.name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
                (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
                report(f"    failed: {failures[-1]}")
                continue
            if figures is None:
                raise KeyboardInterrupt
            (folder / "error.txt").unlink(missing_ok=True)
            result = described | {"figures": figures, "machine": machine()}
            write_atomic(folder / RESULT, json.dumps(result, indent=1) + "\n")
            report(f"    {figures}")
        finally:
            lock.release()
    found = [result_of(run_folder(out, *run)) for run in wanted]
    return [result for result in found if result is not None], failures


def _run(grid: DrafterGrid, context: TrainingContext, articles: Articles, heldout: dict[float, Articles], folder: Path,
         drafter: str, method: str, seed: int) -> dict | None:
    if drafter == "ngram":
        return _fit_ngram(grid, context, articles, folder, method)
    resume = any(folder.glob("checkpoint-*"))
    every = grid.evaluate_every
    return train_drafter(context, articles, heldout, folder, grid.config_of(drafter, method, seed), every, every, keep=1,
                         resume=resume, progress=False)


def _fit_ngram(grid: DrafterGrid, context: TrainingContext, articles: Articles, folder: Path, method: str) -> dict:
    """Fit a table to the human summaries, or to the first own summary of each article."""
    from foredraft.train.drafter.fit_ngram import fit_ngram

    summaries = articles.gold if method == BASELINE else [own[0] for own in articles.own]
    texts = folder / "summaries.jsonl"
    with open(texts, "w", encoding="utf-8") as file:
        for summary in summaries:
            file.write(json.dumps({"highlights": context.tokenizer.decode(summary.tolist())}) + "\n")
    fitted = fit_ngram([texts], folder / f"{folder.name}.ngram", context.folder, order=grid.ngram_order, progress=False)
    texts.unlink()
    return {"texts": fitted.texts, "tokens": fitted.tokens}


def learning_curves(out: Path) -> dict[str, list[dict]]:
    """Folder name to [{step, alpha_T0, alpha_T1}] of every neural run in `out` that was evaluated."""
    curves = {}
    for log in sorted((out / "runs").glob("*/log.jsonl")):
        entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        # a resumed run may have evaluated a step twice; the last evaluation is used
        points = {entry["step"]: {"step": entry["step"]} | {
            name.removeprefix("eval_"): value for name, value in entry.items() if name.startswith("eval_alpha_T")}
            for entry in entries if "eval_alpha" in entry}
        if points:
            curves[log.parent.name] = [points[step] for step in sorted(points)]
    return curves


def checkpoint_of(result: dict, out: Path) -> Path:
    """The checkpoint of a finished run for `foredraft eval --ckpt_path`: a folder, or the file of an n-gram table."""
    folder = run_folder(out, result["drafter"], result["method"], result["seed"])
    return folder / f"{folder.name}.ngram" if result["drafter"] == "ngram" else folder
