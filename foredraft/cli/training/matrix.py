"""`foredraft matrix`: train and evaluate every drafter, without the target (the baseline) and distilled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from foredraft.atomic_write import write_atomic
from foredraft.cli import options
from foredraft.cli.extras import check_training
from foredraft.cli.output import interrupted, notice
from foredraft.errors import UserError
from foredraft.outputs import check_file, check_folder


def matrix(
    data: Annotated[Path, typer.Option(help="Folder with the splits train, validation and test, .jsonl(.gz).")],
    out: Annotated[Path, typer.Option(help="Folder of the runs. The same command resumes an interrupted one.")],
    target: options.Target = None,
    drafters: Annotated[
        str, typer.Option(help="Separated by commas; head is one more.")
    ] = "ngram,cnn,lstm,t5small,t5shallow",
    methods: Annotated[
        str, typer.Option(help="Separated by commas; baseline is training without the target.")
    ] = "baseline,Seq_KD,Supervised_KD,Imit_KD,f_Distill,on_policy_GKD,MiniLLM",
    seeds: Annotated[str, typer.Option(help="Separated by commas.")] = "0",
    articles: Annotated[int, typer.Option(min=1, help="Training articles.")] = 8000,
    steps: Annotated[int, typer.Option(min=1, help="Updates of each run.")] = 200,
    steps_of: Annotated[
        list[str] | None, typer.Option(help="DRAFTER=N: updates of all runs of one drafter; repeatable.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Articles of an update.")] = 16,
    lr: Annotated[float | None, typer.Option(help="Learning rate. Default: each drafter's own.")] = None,
    kd_temp: Annotated[float, typer.Option(help="Temperature of both distributions in a divergence.")] = 1.0,
    divergence: Annotated[str, typer.Option(help="Divergence of Supervised_KD and f_Distill.")] = "tvd",
    sample_tokens: Annotated[int, typer.Option(min=2, help="Longest sample of a drafter, in tokens.")] = 64,
    bf16: options.Bf16 = False,
    size: Annotated[
        list[str] | None, typer.Option(help="DRAFTER:NAME=VALUE: an entry of a drafter's config; repeatable.")
    ] = None,
    pseudo: Annotated[
        list[Path] | None, typer.Option(help="Pseudo-datasets; repeatable. Default: a greedy and a sampled one, made in "
                                             "--out.")
    ] = None,
    workers: options.Workers = 1,
    eval_articles: Annotated[int, typer.Option(min=1, help="Validation articles that select the checkpoint.")] = 48,
    eval_every: Annotated[int, typer.Option(min=1, help="Updates between two validations.")] = 50,
    test_articles: Annotated[int, typer.Option(min=0, help="Test articles of the evaluation; 0 only trains.")] = 300,
    draft_tokens: options.DraftTokensList = "1,2,3,5",
    tuning_articles: Annotated[
        int, typer.Option(min=0, help="Validation articles on which each run's K is chosen; 0 measures every K.")
    ] = 16,
    draft_vocab: Annotated[
        int, typer.Option(min=0, help="Evaluate drafters compacted to this draft vocabulary, in bfloat16; 0 is as trained.")
    ] = 1024,
    cache: Annotated[Path | None,
                     typer.Option(help="Folder of encoder outputs and validation outputs. Default: in --out.")] = None,
    device: options.Device = "cpu",
    record: Annotated[Path | None, typer.Option(help="Record file. Default: bench/results/drafters.jsonl.")] = None,
    as_json: options.Json = False,
) -> None:
    """Train every drafter with every method and seed on the same articles and steps, and evaluate each."""
    check_training()
    from foredraft import embedded
    from foredraft.cli.training.train import parse_sizes
    from foredraft.engine.load import check_device
    from foredraft.engine.models.hub import find_checkpoint
    from foredraft.train.data.drafter_data import read_drafter_data
    from foredraft.train.data.heldout import heldout_articles
    from foredraft.train.data.pairs import find_split
    from foredraft.train.drafter import drafter_grid as runs
    from foredraft.train.drafter.compact import compact_drafter
    from foredraft.train.drafter.distillation_methods import DistillationConfig
    from foredraft.train.drafter.distillation_trainer import DrafterTrainingConfig
    from foredraft.train.drafter.training_context import TrainingContext

    check_device(device)
    if record is not None:
        check_file(record, [data, *(pseudo or [])], is_record, "record file", flag="--record")
    check_folder(out, [data, target, *(pseudo or [])])
    Ks = options.parse_numbers("--draft-tokens", draft_tokens, int, 1)
    try:
        numbers = tuple(int(part) for part in seeds.split(","))
    except ValueError:
        raise UserError(f"--seeds is {seeds!r}; give whole numbers separated by commas") from None
    own_sizes: dict[str, list[str]] = {}
    for item in size or []:
        name, _, rest = item.partition(":")
        own_sizes.setdefault(name, []).append(rest)
    own_steps = tuple(parse_steps(item) for item in steps_of or [])
    recipe = DrafterTrainingConfig(
        method=DistillationConfig(kd_temp=kd_temp, divergence=divergence), steps=steps, warmup_steps=min(20, steps),
        decay_steps=steps // 2, batch_size=batch_size, bf16=bf16, sample_tokens=sample_tokens)
    plan = runs.DrafterGrid(
        tuple(drafters.split(",")), tuple(methods.split(",")), numbers, recipe,
        tuple((name, parse_sizes(items)) for name, items in own_sizes.items()), own_steps, lr, eval_every)
    train_split, validation, test = (find_split(data, split) for split in ("train", "validation", "test"))
    folder = find_checkpoint(target or embedded.TARGET)
    context = TrainingContext(folder, cache or out / "cache", device)
    sets = pseudo or make_pseudo(train_split, folder, out, articles, workers)
    found = read_drafter_data(train_split, sets, context.tokenizer, context.source_limit, recipe.max_target, articles)
    heldout = heldout_articles(context, validation, eval_articles, context.source_limit, recipe.max_target)
    try:
        results, failures = runs.train_grid(plan, context, found, heldout, out, lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        interrupted(f"the same command resumes in {out}")
    path = record or Path("bench/results/drafters.jsonl")
    write_curves(runs.learning_curves(out), context.hash, path)
    if test_articles:
        for drafter in plan.drafters:
            group, checkpoints = [result for result in results if result["drafter"] == drafter], []
            for result in group:
                checkpoint = runs.checkpoint_of(result, out)
                if draft_vocab and checkpoint.is_dir():
                    small = out / "compact" / checkpoint.name
                    checkpoint = small if evaluation_of(small).is_file() else compact_drafter(
                        checkpoint, folder, small, found, draft_vocab)
                checkpoints.append(checkpoint)
            evaluate_group(group, checkpoints, folder, test, test_articles, validation, tuning_articles, Ks, path)
    for failure in failures:
        notice(f"failed: {failure}")
    if as_json:
        print(json.dumps({"out": str(out), "runs": len(results), "failed": failures, "record": str(path)}))
    if failures:
        raise typer.Exit(1)


def is_record(path: Path) -> bool:
    """Whether a file holds records of measurements, one a line."""
    with open(path, encoding="utf-8", errors="replace") as lines:
        return lines.readline().startswith('{"kind": ')


def parse_steps(item: str) -> tuple[str, int]:
    """DRAFTER=N, N at least 1."""
    name, _, number = item.partition("=")
    if not number.isdigit() or int(number) < 1:
        raise UserError(f"--steps-of {item}: give DRAFTER=N, N at least 1")
    return name, int(number)


def make_pseudo(data: Path, target: Path, out: Path, articles: int, workers: int) -> list[Path]:
    """Pseudo-datasets of the training articles, greedy and sampled, each in its folder."""
    from foredraft.train.data.pseudo import EngineConfig, PseudoConfig, pseudo

    folders = []
    for temperature, drafter in ((0.0, "lookup"), (1.0, "none")):
        folders.append(out / f"pseudo-T{temperature:g}")
        pseudo(data, folders[-1], PseudoConfig(temperature, limit=articles), EngineConfig(str(target), drafter), workers)
    return folders


def write_curves(curves: dict[str, list[dict]], target: str, record: Path) -> None:
    """Write alpha by training step of all runs to NAME-curves.json beside the record."""
    from foredraft.bench.harness.record import command_line

    found = {"kind": "curves", "command": command_line(), "target_hash": target, "runs": curves}
    path = record.with_name(f"{record.stem}-curves.json")
    write_atomic(path, json.dumps(found, indent=1) + "\n")


def evaluate_group(results: list[dict], checkpoints: list[Path], target: Path, test: Path, articles: int,
                   validation: Path, tuning: int, draft_tokens: list[int], record: Path) -> None:
    """Evaluate the runs of one drafter that have no evaluation yet, and append their records."""
    import foredraft
    from foredraft.bench.harness.grid_evaluation import evaluate_runs
    from foredraft.bench.harness.record import append_lines, command_line

    waiting = [(result, checkpoint) for result, checkpoint in zip(results, checkpoints, strict=True)
               if not evaluation_of(checkpoint).is_file()]
    if not waiting:
        return
    rows = evaluate_runs(foredraft.load(target, None), [checkpoint for _, checkpoint in waiting], test, articles, validation,
                         tuning, draft_tokens, (0.0, 1.0))
    command = command_line()
    for (result, checkpoint), figures in zip(waiting, rows, strict=True):
        row = {"kind": "matrix", "foredraft": foredraft.__version__, "command": command} | figures | {"training": result}
        append_lines(record, [row])
        evaluation_of(checkpoint).write_text(json.dumps(row) + "\n", encoding="utf-8")
        show_row(row)


def evaluation_of(checkpoint: Path) -> Path:
    return (checkpoint.parent if checkpoint.is_file() else checkpoint) / "eval.json"


def show_row(row: dict) -> None:
    """One line for each temperature."""
    for figures in row["figures"]:
        alpha, best = figures["alpha"], max(figures["rows"], key=lambda one: one.get("speed_up", {}).get("median", 0))
        speed = f"{best['speed_up']['median']:.2f}x" if "speed_up" in best else f"{best['differing']} articles differ"
        print(f"{row['drafter']['path']:30} T={figures['temperature']:g} alpha {alpha['value']:.3f} "
              f"({alpha['low']:.3f}-{alpha['high']:.3f}) K={best['draft_tokens']} "
              f"{best['acceptance']['tokens_per_step']:.2f} tokens/step, {speed}", flush=True)
