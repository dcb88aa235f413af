import json
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import T5Config, T5ForConditionalGeneration

from foredraft.engine.models.checkpoint import weights_hash
from foredraft.ngram_native.table import Table
from foredraft.train import family as module
from foredraft.train.family import build_family
from foredraft.train.history import read_history
from foredraft.train.target.train_target import TargetTrainingConfig


@pytest.fixture
def world(tmp_path):
    """Three splits, a tokenizer, a tiny T5 and a folder of sample texts."""
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2, **{f"w{i}": i + 3 for i in range(29)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for name in ("train", "validation", "test"):
        with open(tmp_path / f"{name}.jsonl", "w") as file:
            for i in range(8):
                words = [f"w{(5 * i + j) % 29}" for j in range(24)]
                file.write(json.dumps({"article": " ".join(words), "highlights": " ".join(words[:6])}) + "\n")
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=32, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=4, feed_forward_proj="gated-gelu",
        tie_word_embeddings=True, decoder_start_token_id=0,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "tiny")
    (tmp_path / "assets" / "texts").mkdir(parents=True)
    (tmp_path / "assets" / "texts" / "one.txt").write_text("w1 w2 w3 w4")
    return tmp_path


def test_build_family_writes_target_card_and_table(world):
    config = TargetTrainingConfig(init=str(world / "tiny"), steps=2, decay_steps=1, batch_size=4, max_source=20,
                                  max_target=8)
    longer = replace(config, steps=3, sequence_unlikelihood=1.0, sequence_every=1)
    figures = build_family(world, world, world / "work", world / "assets", [config, longer], test_articles=4)
    assert [run["last_step"] for run in read_history(world / "assets" / "target")] == [2, 3]
    target = world / "assets" / "target"
    written = {path.name for path in target.iterdir()}
    assert written == {*module.TARGET_FILES, "README.md", "figures.json", "training.json"}
    assert json.loads((target / "figures.json").read_text())["hash"] == weights_hash(target)
    assert figures["articles"] == 4 and "**one.txt**" in (target / "README.md").read_text()
    assert Table.open(world / "assets" / "ngram" / "cnndm.ngram").sizes[0] == 32


def test_an_interrupted_training_leaves_the_assets_unchanged(world, monkeypatch):
    monkeypatch.setattr(module, "train_target", lambda *_, **__: False)
    assert build_family(world, world, world / "work", world / "assets") is None
    assert [path.name for path in (world / "assets").iterdir()] == ["texts"]
