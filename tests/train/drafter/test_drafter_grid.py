from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from foredraft.cli.training.matrix import parse_steps
from foredraft.errors import UserError
from foredraft.train.data.drafter_data import read_drafter_data
from foredraft.train.data.heldout import heldout_articles
from foredraft.train.data.pseudo import EngineConfig, PseudoConfig, pseudo
from foredraft.train.drafter import drafter_grid as module
from foredraft.train.drafter.distillation_methods import METHODS
from foredraft.train.drafter.distillation_trainer import DrafterTrainingConfig
from foredraft.train.drafter.drafter_grid import BASELINE, DrafterGrid, checkpoint_of, run_folder, train_grid
from foredraft.train.drafter.training_context import TrainingContext

SIZES = (("hidden_size", 8), ("num_heads", 2), ("d_kv", 6), ("d_ff", 16))
GRID = DrafterGrid(("ngram", "lstm"), (BASELINE, "Seq_KD"), (0,), DrafterTrainingConfig(
    steps=2, warmup_steps=1, decay_steps=1, batch_size=4, max_target=8), (("lstm", SIZES),), evaluate_every=2)


@pytest.fixture(scope="module")
def world(tiny_model_path, tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("world")
    data = folder / "train.jsonl"
    texts = [" ".join(f"w{3 + (7 * i + j) % 90}" for j in range(9)) for i in range(8)]
    data.write_text("".join(json.dumps({"article": text, "highlights": text[:20]}) + "\n" for text in texts))
    pseudo(data, folder / "own", PseudoConfig(max_new_tokens=8), EngineConfig(str(tiny_model_path)), progress=False)
    context = TrainingContext(tiny_model_path, folder / "cache")
    articles = read_drafter_data(data, folder / "own", context.tokenizer, 16, 8)
    return context, articles, heldout_articles(context, data, 2, 16, 8)


def test_the_grid_trains_every_run_once(world, tmp_path, monkeypatch):
    lines = []
    results, failures = train_grid(GRID, *world, tmp_path, lines.append)
    assert not failures and [(r["drafter"], r["method"]) for r in results] == [
        ("ngram", BASELINE), ("lstm", BASELINE), ("ngram", "Seq_KD"), ("lstm", "Seq_KD")]
    assert all(checkpoint_of(result, tmp_path).exists() for result in results)
    monkeypatch.setattr(module, "train_drafter", None)
    assert train_grid(GRID, *world, tmp_path, lines.append)[0] == results
    with pytest.raises(UserError, match="other settings"):
        train_grid(replace(GRID, config=replace(GRID.config, steps=3)), *world, tmp_path, lines.append)


def test_a_failing_run_does_not_stop_the_others(world, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "train_drafter", lambda *_, **__: 1 / 0)
    results, failures = train_grid(GRID, *world, tmp_path, lambda line: None)
    assert [r["drafter"] for r in results] == ["ngram", "ngram"] and len(failures) == 2
    assert "ZeroDivisionError" in (run_folder(tmp_path, "lstm", BASELINE, 0) / "error.txt").read_text()


def test_baseline_and_methods_have_the_same_configuration(world):
    grid = DrafterGrid(seeds=(0, 1))
    assert len(grid.runs()) == 2 * 4 * 7 + 2 and grid.runs()[0][1] == BASELINE
    for drafter in ("cnn", "lstm", "t5small", "t5shallow"):
        baseline = grid.config_of(drafter, BASELINE, 1)
        assert baseline.method.kd_loss == 0
        for method in METHODS:
            distilled = grid.config_of(drafter, method, 1)
            assert replace(distilled, method=baseline.method) == baseline and distilled.method.kd_loss == 1


def test_steps_of_a_drafter_apply_to_baseline_and_methods():
    grid = DrafterGrid(config=DrafterTrainingConfig(steps=200, warmup_steps=20, decay_steps=100), steps=(("t5small", 10),))
    for method in (BASELINE, "Seq_KD"):
        few, many = grid.config_of("t5small", method, 0), grid.config_of("lstm", method, 0)
        assert (few.steps, few.warmup_steps, few.decay_steps) == (10, 10, 5)
        assert (many.steps, many.warmup_steps, many.decay_steps) == (200, 20, 100)
    with pytest.raises(UserError, match="--steps-of: ngram"):
        DrafterGrid(steps=(("ngram", 10),))
    with pytest.raises(UserError, match="--steps-of lstm=none"):
        parse_steps("lstm=none")


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match="--drafters: gru"):
        DrafterGrid(drafters=("gru",))
    with pytest.raises(UserError, match="--methods: Magic"):
        DrafterGrid(methods=("Magic",))
