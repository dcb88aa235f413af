import json
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, T5Config, T5ForConditionalGeneration

from foredraft.errors import UserError
from foredraft.train.data.pair_batches import PairDataset
from foredraft.train.history import command, read_history
from foredraft.train.target import train_target as module
from foredraft.train.target.train_target import TargetTrainingConfig, new_target, train_target
from foredraft.train.trainer import learning_rate_factor


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """One thread is faster for tiny products."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with 20 pairs (the summary is the article's beginning), a tokenizer and a tiny T5 with dropout."""
    folder = tmp_path_factory.mktemp("world")
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2, **{f"w{i}": i + 3 for i in range(29)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, count in (("train", 20), ("validation", 4)):
        with open(folder / f"{name}.jsonl", "w") as file:
            for i in range(count):
                words = [f"W{(7 * i + j) % 29}" for j in range(24)]
                file.write(json.dumps({"article": " ".join(words), "highlights": " ".join(words[:5])}) + "\n")
    torch.manual_seed(0)
    tiny = T5Config(
        vocab_size=32, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=4, feed_forward_proj="gated-gelu",
        tie_word_embeddings=True, dropout_rate=0.1, decoder_start_token_id=0,
    )  # fmt: skip
    T5ForConditionalGeneration(tiny).save_pretrained(folder / "tiny")
    return folder


def train(world, out, **changes):
    known = {"steps": 7, "warmup_steps": 2, "decay_steps": 3, "batch_size": 8, "learning_rate": 1e-2}
    settings = {key: changes.pop(key) for key in list(changes) if key in TargetTrainingConfig.__dataclass_fields__}
    config = TargetTrainingConfig(init=str(world / "tiny"), max_source=24, max_target=8, span_every=4, **known | settings)
    options = {"save_every": 4, "evaluate_every": 100, "log_every": 1, **changes}
    return train_target(world, out, world / "tokenizer.json", config, **options)


@pytest.fixture(scope="module")
def uninterrupted(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted")
    assert train(world, out, lowercase=True, evaluate_every=4)
    return out


def test_the_loss_falls_and_the_log_has_json_lines(uninterrupted):
    log = [json.loads(line) for line in (uninterrupted / "log.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert len(losses) == 7 and losses[-1] < losses[0]
    evaluation = {key for entry in log for key in entry if key.startswith("eval_")}
    assert {"eval_loss", "eval_rouge1", "eval_rougeL", "eval_repeat4", "eval_ended", "eval_span_top1"} <= evaluation


def test_transformers_loads_the_exported_target(uninterrupted):
    model = AutoModelForSeq2SeqLM.from_pretrained(uninterrupted)
    tokenizer = AutoTokenizer.from_pretrained(uninterrupted)
    assert model.dtype == torch.bfloat16 and model.config.n_positions == 24
    encoded = tokenizer("W1 w2", return_tensors="pt").input_ids
    assert encoded.tolist() == [[4, 5, 1]]
    assert model.generate(encoded, max_new_tokens=4).shape[1] > 1


def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one(world, uninterrupted, tmp_path, monkeypatch):
    out, seen, get = tmp_path / "run", [], PairDataset.__getitem__

    def interrupting(self, index):
        seen.append(index)
        if len(seen) == 30:
            signal.raise_signal(signal.SIGTERM)
        return get(self, index)

    monkeypatch.setattr(PairDataset, "__getitem__", interrupting)
    before = signal.getsignal(signal.SIGTERM)
    assert not train(world, out, lowercase=True)
    assert signal.getsignal(signal.SIGTERM) is before
    # stopped inside the second epoch, with a complete checkpoint and no partial one
    steps = [int(path.name.split("-")[1]) for path in out.glob("checkpoint-*")]
    assert max(steps) in (4, 5) and not (out / "model.safetensors").exists() and not (out / ".partial").exists()
    monkeypatch.setattr(PairDataset, "__getitem__", get)
    assert train(world, out, lowercase=True, resume=True)
    expected, resumed = (load_file(folder / "checkpoint-7" / "model.safetensors") for folder in (uninterrupted, out))
    assert expected.keys() == resumed.keys()
    for name in expected:
        assert torch.equal(expected[name], resumed[name]), name
    first, second = read_history(out)
    assert (first["first_step"], second["first_step"], second["last_step"]) == (0, max(steps), 7)
    assert command(second, TargetTrainingConfig).endswith("--lowercase --resume")


def test_a_resumed_run_may_be_given_another_length(world, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted / "checkpoint-4", tmp_path / "checkpoint-4")
    train(world, tmp_path, resume=True, steps=10, decay_steps=2)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    rates = {entry["step"]: entry["learning_rate"] for entry in log if "learning_rate" in entry}
    assert rates[9] == pytest.approx(1e-2) and rates[10] == pytest.approx(5e-3)
    assert (tmp_path / "checkpoint-10").is_dir()


def test_resuming_a_finished_run_only_exports_again(world, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted / "checkpoint-7", tmp_path / "checkpoint-7")
    assert train(world, tmp_path, lowercase=True, resume=True)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-7"]
    exported, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path, uninterrupted))
    assert exported.keys() == expected.keys()
    assert all(torch.equal(exported[name], expected[name]) for name in expected)


def test_a_failing_checkpoint_leaves_the_earlier_one(world, tmp_path, monkeypatch):
    train(world, tmp_path, steps=2, save_every=2)
    before = (tmp_path / "checkpoint-2" / "model.safetensors").read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(module.TargetTrainer, "_save_rng_state", fail)
    with pytest.raises(OSError, match="disk full"):
        train(world, tmp_path, steps=4, save_every=2, resume=True)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    assert (tmp_path / "checkpoint-2" / "model.safetensors").read_bytes() == before


def test_old_checkpoints_are_deleted_and_unlikelihood_runs(world, tmp_path):
    options = {"unlikelihood": 0.5, "sequence_unlikelihood": 0.5, "sequence_every": 2, "bf16": True}
    train(world, tmp_path, steps=4, save_every=1, keep=2, embedding_scale=2.0, **options)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]


def test_the_schedule_is_warm_up_stable_decay():
    factors = [learning_rate_factor(step, 4, 20, 5) for step in range(21)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[4:16] == [1.0] * 12
    assert factors[16:] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0])
    # a longer run has the same stable phase; decay may be 0
    assert factors[:16] == [learning_rate_factor(step, 4, 900, 5) for step in range(16)]
    assert learning_rate_factor(19, 0, 20, 0) == 1.0


def test_the_default_geometry_is_that_of_the_embedded_target():
    model = new_target(TargetTrainingConfig())
    assert sum(parameter.numel() for parameter in model.parameters()) == 13_537_792
    assert model.config.n_positions == 256 and model.config.vocab_size == 32128


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init": "nowhere"}, "--init nowhere"),
        ({"resume": True}, "without --resume"),
        ({"data": "train.jsonl"}, "--validation"),
        ({"data": "tiny"}, "no train.jsonl"),
        ({"tokenizer_path": "tiny"}, "--tokenizer"),
    ],
)
def test_invalid_arguments_are_named(world, tmp_path, changes, message):
    config = TargetTrainingConfig(init=changes.pop("init", str(world / "tiny")), max_source=24, max_target=8)
    paths = {"data": world, "tokenizer_path": world}
    paths |= {key: world / changes.pop(key) for key in list(changes) if key in paths}
    with pytest.raises(UserError, match=message) as error:
        train_target(out=tmp_path / "out", config=config, **paths, **changes)
    assert "\n" not in str(error.value)
