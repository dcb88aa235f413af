import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import T5Config, T5ForConditionalGeneration
from typer.testing import CliRunner

from foredraft.errors import UserError
from foredraft.train.data.pairs import END
from foredraft.train.history import describe_run, record_run
from foredraft.train.target.copy_init import copy_init
from foredraft.train.target.export import export_target
from foredraft.train.target.model_card import REQUIREMENTS, card_text, engine_generate, measure_target, write_card
from foredraft.train.target.target_metrics import copied_share, repeats, rouge, words
from foredraft.train.target.train_target import TargetTrainingConfig

WORDS = ["river", "bridge", "walked", "mayor", "opened", "children", "festival", "police", "storm", "garden"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A target with copy initialisation and a word vocabulary, ten pairs and a sample text."""
    folder = tmp_path_factory.mktemp("card")
    words = WORDS + [f"{word}{i}" for word in WORDS for i in range(9)]
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=104, d_model=256, d_kv=64, d_ff=32, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu",
        tie_word_embeddings=True, dropout_rate=0.0, decoder_start_token_id=0, n_positions=40,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    copy_init(model)
    export_target(model, tokenizer, folder / "target")
    draw = torch.Generator().manual_seed(1)
    with open(folder / "test.jsonl", "w") as file:
        for _ in range(10):
            picked = [words[i] for i in torch.randint(len(words), (50,), generator=draw)]
            file.write(json.dumps({"article": " ".join(picked), "highlights": " ".join(picked[3:9])}) + "\n")
    (folder / "sample.txt").write_text("river bridge walked mayor opened children festival police storm")
    return folder


def echo(sources):
    """In place of a target: the source's tokens 3 to 8, and an end token for every second source."""
    return [source[3:9] + ([END] if i % 2 else []) for i, source in enumerate(sources)]


def test_metrics_of_a_known_generator(world):
    figures = measure_target(world / "target", world / "test.jsonl", 8, echo)
    assert figures["articles"] == 8 and figures["source_tokens"] == 40
    assert figures["rouge1"] == figures["rouge2"] == figures["rougeLsum"] == 100
    assert figures["lead56_rouge1"] < 60
    assert figures["ended"] == 0.5 and figures["copied_3grams"] == 1 and figures["repeated_4grams"] == 0
    assert figures["tokens"] == 6
    assert figures["span_top1"] > 0.5
    assert figures["shuffled_penalty"] == pytest.approx(figures["loss_shuffled"] - figures["loss"], abs=1e-3)


def test_the_engines_summaries_equal_transformers(world):
    sources = [[3, 4, 5, 6, 7, 1], [9, 8, 7, 6, 1]]
    model = T5ForConditionalGeneration.from_pretrained(world / "target", dtype=torch.float32)
    for source, output in zip(sources, engine_generate(world / "target")(sources), strict=True):
        expected = model.generate(torch.tensor([source]), max_new_tokens=128, do_sample=False)[0, 1:].tolist()
        assert output == expected


def test_the_card_contains_metrics_commands_samples_and_missed_requirements(world):
    data = [{"file": "train.jsonl", "pairs": 77, "fingerprint": "ab" * 32}]
    record_run(world / "target", describe_run(TargetTrainingConfig(lowercase=True), data, 0, 50, 600.0))
    record_run(world / "target", describe_run(TargetTrainingConfig(steps=70), data, 50, 70, 60.0))

    def stutter(sources):
        return [source[:5] + source[:5] for source in sources]

    figures = write_card(world / "target", world / "test.jsonl", 6, [world / "sample.txt"], stutter)
    card = (world / "target" / "README.md").read_text()
    assert figures["repeated_4grams"] == figures["repeated_4pieces"] == 1
    assert figures["human_repeated_4grams"] == figures["human_repeated_4pieces"] == 0
    assert "| summaries with a repeated 4-gram of words | <= 0.05 | 1.000 | **missed** |" in card
    assert "foredraft train-target --data DATA --tokenizer TOKENIZER --out OUT --lowercase\n" in card
    assert "--steps 70 --resume" in card and "800 examples in 10 minutes" in card and "77 pairs" in card
    assert "**sample.txt**: river bridge walked mayor opened river bridge" in card
    record = json.loads((world / "target" / "figures.json").read_text())
    assert len(record["hash"]) >= 16 and record["hash"] in card and record["rouge1"] == figures["rouge1"]


def test_minima_and_maxima_are_met_on_the_right_side(world):
    figures = measure_target(world / "target", world / "test.jsonl", 4, echo) | {"hash": "0", "data": "test.jsonl"}
    config = json.loads((world / "target" / "config.json").read_text())
    for name, _, bound, minimum in REQUIREMENTS:
        for nudge, met in ((0.01, minimum), (-0.01, not minimum)):
            text = card_text(figures | {name: bound + nudge}, config, [], [])
            assert (f"| {bound + nudge:.3f} | met |" in text) is met


def test_a_folder_without_a_target_is_refused(world, tmp_path):
    with pytest.raises(UserError, match="no config.json"):
        write_card(tmp_path, world / "test.jsonl")


def test_the_commands_list_their_options():
    from foredraft.cli.main import app

    for name, option in (("train-target", "--sequence-unlikelihood"), ("target-card", "--limit")):
        result = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
        assert result.exit_code == 0 and option in result.output


def test_repeats_shares_and_rouge():
    assert repeats([1, 2, 3, 4, 1, 2, 3, 4]) and not repeats([1, 2, 3, 4, 1, 2, 3])
    assert words("It's 5, It's 5.") == ["it", "s", "5"] * 2
    assert copied_share([1, 2, 3, 9], [0, 1, 2, 3]) == 0.5
    scores = rouge(["the dogs ran"], ["the dog ran\nhome"])
    assert scores["rouge1"] == pytest.approx(100 * 6 / 7)
