from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from foredraft.engine.drafters.registry import kind_of
from foredraft.errors import UserError
from foredraft.train.data.drafter_data import DrafterDataset, collate_drafter, pad_sequences, read_drafter_data
from foredraft.train.data.heldout import heldout_articles
from foredraft.train.data.pairs import IGNORE
from foredraft.train.data.pseudo import EngineConfig, PseudoConfig, pseudo
from foredraft.train.drafter.distillation_methods import METHODS, DistillationConfig
from foredraft.train.drafter.distillation_trainer import DrafterTrainingConfig
from foredraft.train.drafter.train_drafter import new_drafter, train_drafter
from foredraft.train.drafter.training_context import TrainingContext
from foredraft.train.history import read_history

TINY = {
    "lstm": (("hidden_size", 8), ("num_heads", 2), ("d_kv", 6), ("d_ff", 16)),
    "cnn": (("hidden_size", 8), ("num_heads", 2), ("d_kv", 6), ("d_ff", 16), ("dilations", (1, 2))),
    "head": (("num_heads", 2), ("d_kv", 6), ("d_ff", 16)),
    "t5small": (("num_layers", 1), ("num_decoder_layers", 1)),
    "t5shallow": (("layers", (0,)),),
}
CONFIG = DrafterTrainingConfig(steps=4, warmup_steps=1, decay_steps=2, batch_size=4, learning_rate=1e-2, max_target=10,
                       sample_tokens=8, sizes=TINY["lstm"])


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def world(tiny_model_path, tmp_path_factory):
    """The context of a tiny target, 12 articles with human and own summaries, held-out articles, and the folder."""
    folder = tmp_path_factory.mktemp("world")
    for name, count, first in (("train", 12, 0), ("validation", 4, 40)):
        lines = []
        for i in range(first, first + count):
            words = [f"w{3 + (7 * i + j) % 90}" for j in range(10 + i % 5)]
            lines.append(json.dumps({"article": " ".join(words), "highlights": " ".join(words[: 3 + i % 4])}))
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    pseudo(folder / "train.jsonl", folder / "own", PseudoConfig(max_new_tokens=8), EngineConfig(str(tiny_model_path)),
           progress=False)
    context = TrainingContext(tiny_model_path, folder / "cache")
    articles = read_drafter_data(folder / "train.jsonl", folder / "own", context.tokenizer, 16, 10)
    heldout = heldout_articles(context, folder / "validation.jsonl", 4, 16, 8)
    return context, articles, heldout, folder


def train(world, out, **changes):
    context, articles, heldout, _ = world
    options = {"evaluate_every": 2, "save_every": 2, "log_every": 1, "progress": False}
    options |= {name: changes.pop(name) for name in ("resume", "evaluate_every", "save_every", "keep") if name in changes}
    return train_drafter(context, articles, heldout, out, replace(CONFIG, **changes), **options)


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [float(entry["loss"]) for entry in log(folder) if "loss" in entry]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_an_lstm(world, tmp_path, name):
    figures = train(world, tmp_path, method=DistillationConfig(distill_method=name, kd_temp=2), steps=2)
    assert 0 < figures["alpha"] < 1 and kind_of(tmp_path) == "lstm"
    assert all(torch.isfinite(torch.tensor(losses(tmp_path))))


@pytest.mark.parametrize("drafter", ["cnn", "head", "t5small", "t5shallow"])
def test_every_drafter_trains_on_its_own_samples(world, tmp_path, drafter):
    method = DistillationConfig(distill_method="on_policy_GKD", lmbda=1.0, kd_temp=1)
    figures = train(world, tmp_path, drafter=drafter, sizes=TINY[drafter], method=method, steps=2)
    assert figures["best_step"] == 2 and kind_of(tmp_path) == drafter


def test_distillation_raises_alpha_and_the_best_checkpoint_is_kept(world, tmp_path):
    method = DistillationConfig(loss=0, distill_method="f_Distill", divergence="fkl", kd_temp=1)
    figures = train(world, tmp_path, method=method, steps=30, evaluate_every=10, save_every=10, keep=1)
    alphas = {entry["step"]: entry["eval_alpha"] for entry in log(tmp_path) if "eval_alpha" in entry}
    best = max(alphas, key=alphas.get)
    assert alphas[30] > 0.3 and figures["alpha"] == alphas[best] and figures["best_step"] == best
    kept, best_weights = (load_file(folder / "model.safetensors") for folder in (tmp_path, tmp_path / f"checkpoint-{best}"))
    assert all(torch.equal(kept[name], best_weights[name]) for name in best_weights)
    run = read_history(tmp_path)[0]
    assert run["target_hash"] == world[0].hash and run["recipe"]["method"]["divergence"] == "fkl"


def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one(world, tmp_path, monkeypatch):
    method = DistillationConfig(distill_method="on_policy_GKD", kd_temp=1)
    train(world, tmp_path / "uninterrupted", method=method, steps=6)
    seen, get = [], DrafterDataset.__getitem__

    def interrupting(self, index):
        seen.append(index)
        if len(seen) == 14:  # inside the second epoch
            signal.raise_signal(signal.SIGTERM)
        return get(self, index)

    monkeypatch.setattr(DrafterDataset, "__getitem__", interrupting)
    assert train(world, tmp_path / "interrupted", method=method, steps=6) is None
    monkeypatch.setattr(DrafterDataset, "__getitem__", get)
    train(world, tmp_path / "interrupted", method=method, steps=6, resume=True)
    expected, resumed = (load_file(tmp_path / name / "checkpoint-6" / "model.safetensors")
                         for name in ("uninterrupted", "interrupted"))
    for name in expected:
        assert torch.equal(expected[name], resumed[name]), name


def test_an_eagle_head_learns_its_targets_features(world, tmp_path):
    """The distance to them falls after one prediction and after three."""
    context, articles, _, _ = world
    method = DistillationConfig(loss=0, distill_method="f_Distill", divergence="fkl", kd_temp=1)
    batch = collate_drafter([DrafterDataset(articles)[0, i] for i in range(4)])
    read, labels = pad_sequences(batch["own"])
    inputs = (read, context.encoded(articles).batch([0, 1, 2, 3], batch["source_ids"].shape[1]), batch["source_mask"])
    hidden, scored = context.teacher.hidden(*inputs), labels != IGNORE

    def distances(model):
        found = model.unrolled(*inputs, batch["source_ids"], hidden, 3)
        return [float((states[scored] - hidden[scored]).abs().mean()) for states, _ in found]

    config = dict(drafter="head", sizes=TINY["head"], method=method, steps=30, evaluate_every=30, save_every=30)
    figures = train(world, tmp_path, **config)
    before = new_drafter(replace(CONFIG, drafter="head", sizes=TINY["head"]), context.folder)
    after = type(before).load(tmp_path, context.folder)
    with torch.no_grad():
        assert all(now < 0.9 * then for now, then in zip(distances(after), distances(before), strict=True))
    assert figures["alpha"] > 0.25


def test_accumulation_does_not_change_the_update(world, tmp_path):
    method = DistillationConfig(distill_method="Supervised_KD", kd_temp=2)
    for accumulation in (1, 2):
        train(world, tmp_path / str(accumulation), method=method, accumulation=accumulation)
    assert losses(tmp_path / "1") == pytest.approx(losses(tmp_path / "2"), abs=1e-5)


def test_cached_logits_replace_the_teacher(world, tmp_path):
    """With all 100 tokens cached the loss is the teacher's."""
    base = DistillationConfig(loss=0, distill_method="f_Distill", divergence="rkl", kd_temp=2)
    for name, method in (("live", base), ("cached", replace(base, teacher_logits=100))):
        train(world, tmp_path / name, method=method, steps=2)
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "live"), rel=2e-2)


@pytest.mark.parametrize("drafter", ["lstm", "head"])
def test_alpha_in_training_equals_the_engines(world, tmp_path, drafter):
    """The teacher-forced module compared with the engine's drafter, prefix by prefix."""
    from foredraft.bench.harness.alpha import alpha_tv
    from foredraft.engine.load import load

    context, _, heldout, _ = world
    train(world, tmp_path, steps=2, drafter=drafter, sizes=TINY[drafter])
    entry = next(entry for entry in log(tmp_path) if "eval_alpha_T0" in entry)
    model = load(context.folder, tmp_path)
    for temperature, articles in heldout.items():
        outputs = [own[0].tolist() for own in articles.own]
        ours = alpha_tv(model, [source.tolist() for source in articles.sources], outputs, temperature)
        assert entry[f"eval_alpha_T{temperature:g}"] == pytest.approx(ours, abs=1e-3)


_TWO = """
import sys, torch
from foredraft.train.drafter.train_drafter import *
from foredraft.train.drafter.training_context import TrainingContext
from foredraft.train.data.drafter_data import read_drafter_data
from foredraft.train.data.heldout import heldout_articles
torch.set_num_threads(1)
target, folder, out, method = sys.argv[1:]
context = TrainingContext(target, folder + "/cache")
articles = read_drafter_data(folder + "/train.jsonl", folder + "/own", context.tokenizer, 16, 10)
heldout = heldout_articles(context, folder + "/validation.jsonl", 4, 16, 8)
config = DrafterTrainingConfig(steps=4, warmup_steps=1, decay_steps=2, batch_size=4, learning_rate=1e-2, max_target=10,
    sizes=(("hidden_size", 8), ("num_heads", 2), ("d_kv", 6), ("d_ff", 16)),
    method=DistillationConfig(distill_method=method, kd_temp=2))
train_drafter(context, articles, heldout, out, config, 2, 2, log_every=1, progress=False)
"""


@pytest.mark.full
def test_two_processes_have_the_loss_of_one(world, tmp_path):
    context, _, _, folder = world
    script = tmp_path / "two.py"
    script.write_text(_TWO)
    checkout = Path(__file__).resolve().parents[3]
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29641"]
    done = subprocess.run([*launch, str(script), str(context.folder), str(folder), str(tmp_path / "two"), "Supervised_KD"],
                          env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    train(world, tmp_path / "one", method=DistillationConfig(distill_method="Supervised_KD", kd_temp=2))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)


@pytest.mark.parametrize(("changes", "message"), [
    ({"resume": True}, "without --resume"),
    ({"init": "nowhere"}, "--init nowhere"),
    ({"batch_size": 5, "accumulation": 2}, "give a multiple of 2"),
    ({"batch_size": 16}, "12 articles are fewer"),
    ({"sizes": (("depth", 3),)}, "no size 'depth'"),
])
def test_invalid_arguments_are_named(world, tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as error:
        train(world, tmp_path, **changes)
    assert "\n" not in str(error.value)


def test_missing_summaries_are_named_at_the_start(world, tmp_path):
    context, articles, heldout, folder = world
    for own, message in ((False, "--pseudo-dataset-path"), (True, "--data")):
        lacking = replace(articles, own=[[]] * 12) if not own else replace(articles, gold=[None] * 12)
        with pytest.raises(UserError, match=message):
            train_drafter(context, lacking, heldout, tmp_path, replace(CONFIG, method=DistillationConfig()))


def test_an_initial_drafter_of_another_kind_or_target_is_refused(world, tmp_path, tiny_checkpoints):
    context = world[0]
    new_drafter(CONFIG, context.folder).save(tmp_path)
    with pytest.raises(UserError, match="lstm drafter, not cnn"):
        new_drafter(replace(CONFIG, drafter="cnn", init=str(tmp_path)), context.folder)
    with pytest.raises(UserError, match="shares the embeddings"):
        new_drafter(replace(CONFIG, init=str(tmp_path)), tiny_checkpoints["v1.0"])
    with pytest.raises(UserError, match="no tokenizer.json"):
        TrainingContext(tiny_checkpoints["v1.0"], tmp_path)
