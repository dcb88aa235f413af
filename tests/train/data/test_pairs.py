import gzip
import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from foredraft.errors import UserError
from foredraft.train.data.pair_batches import LengthGroups, PairDataset, collate, random_span
from foredraft.train.data.pairs import END, IGNORE, load_pairs, read_pairs, save_pairs


@pytest.fixture
def tokenizer():
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2, **{f"w{i}": i + 3 for i in range(97)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def write(path, records):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines((record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records)
    return path


def pair(article_words, summary_words):
    words = [f"w{i % 97}" for i in range(max(article_words, summary_words))]
    return {"article": " ".join(words[:article_words]), "highlights": " ".join(words[:summary_words])}


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz"])
def test_pairs_are_truncated_to_the_limits_and_end_in_the_end_token(tmp_path, tokenizer, name):
    pairs = load_pairs(write(tmp_path / name, [pair(3, 2), pair(30, 20)]), tokenizer, 8, 6)
    assert pairs.source(0).tolist() == [3, 4, 5, END]
    assert pairs.target(0).tolist() == [3, 4, END]
    assert pairs.source(1).tolist() == [3, 4, 5, 6, 7, 8, 9, END]
    assert pairs.target(1).tolist() == [3, 4, 5, 6, 7, END]
    assert pairs.sources.dtype == np.uint16


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"article": "w1", "highl', "not JSON"),
        ('["w1", "w2"]', "'article'"),
        ('{"article": "w1"}', "'highlights'"),
        ('{"article": " ", "highlights": "w1"}', "'article'"),
        ('{"article": "w1", "highlights": 7}', "'highlights'"),
    ],
)
def test_an_invalid_line_is_named_with_its_file(tmp_path, line, message):
    path = write(tmp_path / "broken.jsonl", [pair(2, 1), "", line])
    with pytest.raises(UserError, match=rf"broken\.jsonl, line 3: .*{message}") as error:
        list(read_pairs(path))
    assert "\n" not in str(error.value)


def test_missing_truncated_and_empty_files_are_named(tmp_path, tokenizer):
    with pytest.raises(UserError, match=r"nowhere\.jsonl: no such file"):
        load_pairs(tmp_path / "nowhere.jsonl", tokenizer, 8, 8)
    complete = write(tmp_path / "cut.jsonl.gz", [pair(40, 9) for _ in range(50)]).read_bytes()
    (tmp_path / "cut.jsonl.gz").write_bytes(complete[:-20])
    with pytest.raises(UserError, match=r"cut\.jsonl\.gz, after line \d+: unreadable"):
        list(read_pairs(tmp_path / "cut.jsonl.gz"))
    with pytest.raises(UserError, match="no pairs"):
        load_pairs(write(tmp_path / "empty.jsonl", []), tokenizer, 8, 8)
    (tmp_path / "ids.npz").write_bytes(b"text")
    with pytest.raises(UserError, match=r"ids\.npz: not a file of tokenised pairs"):
        load_pairs(tmp_path / "ids.npz", tokenizer, 8, 8)


def test_the_cache_is_used_until_the_text_or_a_limit_changes(tmp_path, tokenizer):
    path = write(tmp_path / "train.jsonl", [pair(9, 4)])
    first = load_pairs(path, tokenizer, 8, 8, cache=tmp_path / "cache")
    reloaded = load_pairs(path, tokenizer, 8, 8, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert reloaded.fingerprint == first.fingerprint
    assert reloaded.sources.tolist() == first.sources.tolist()
    assert load_pairs(path, tokenizer, 6, 8, cache=tmp_path / "cache").fingerprint != first.fingerprint
    write(path, [pair(9, 5)])
    assert load_pairs(path, tokenizer, 8, 8, cache=tmp_path / "cache").target(0).tolist() == [3, 4, 5, 6, 7, END]
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_saved_pairs_replace_the_text_and_can_be_truncated_further(tmp_path, tokenizer):
    pairs = load_pairs(write(tmp_path / "train.jsonl", [pair(20, 9), pair(4, 3)]), tokenizer, 16, 8)
    save_pairs(pairs, tmp_path / "train.npz")
    same = load_pairs(tmp_path / "train.npz", tokenizer, 16, 8)
    assert same.sources.tolist() == pairs.sources.tolist() and same.fingerprint == pairs.fingerprint
    shorter = load_pairs(tmp_path / "train.npz", tokenizer, 5, 8)
    assert [shorter.source(i).tolist() for i in range(2)] == [[3, 4, 5, 6, END], [3, 4, 5, 6, END]]
    assert shorter.fingerprint != pairs.fingerprint


def test_collate_shifts_and_pads_and_the_decoder_reads_unscored_tokens():
    batch = collate(
        [
            {"source": np.array([5, 6, 1], np.uint16), "target": np.array([7, 8, 1], np.uint16), "free": 0},
            {"source": np.array([5, 1], np.uint16), "target": np.array([3, 4, 5, 6], np.uint16), "free": 2},
        ]
    )
    assert batch["input_ids"].tolist() == [[5, 6, 1], [5, 1, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["decoder_input_ids"].tolist() == [[0, 7, 8, 0], [0, 3, 4, 5]]
    assert batch["labels"].tolist() == [[7, 8, 1, IGNORE], [IGNORE, IGNORE, 5, 6]]


def test_one_example_in_span_every_copies_a_span_of_its_source(tmp_path, tokenizer):
    records = [pair(60, 30) for _ in range(400)]
    pairs = load_pairs(write(tmp_path / "train.jsonl", records), tokenizer, 64, 32)
    dataset = PairDataset(pairs, span_every=4, seed=1)
    examples = [dataset[0, i] for i in range(len(dataset))]
    spans = [example for example in examples if example["free"]]
    assert 60 < len(spans) < 140
    for span in spans:
        source, target = span["source"].tolist(), span["target"].tolist()
        assert END not in target
        assert any(source[i : i + len(target)] == target for i in range(len(source)))
    assert all((dataset[0, i]["target"] == examples[i]["target"]).all() for i in range(50))
    assert any(dataset[1, i]["free"] != examples[i]["free"] for i in range(50))
    assert not any(dataset[i]["free"] for i in range(len(dataset)))


def test_random_spans_fit_short_sources():
    rng = np.random.default_rng(0)
    source = np.arange(3, 9, dtype=np.uint16)  # the last one stands for </s>
    assert random_span(source, 64, rng).tolist() == source[:-1].tolist()


def test_length_groups_visit_every_pair_once_in_batches_of_similar_length():
    lengths = np.random.default_rng(0).integers(1, 100, 1003)
    sampler = LengthGroups(lengths, 8, seed=3)
    epochs = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        picks = list(sampler)
        assert {e for e, _ in picks} == {epoch}
        epochs.append([i for _, i in picks])
        assert sorted(epochs[-1]) == list(range(1003))
    assert epochs[0] != epochs[1]
    sampler.set_epoch(0)
    assert [i for _, i in sampler] == epochs[0]
    full = lengths[epochs[0][:1000]].reshape(-1, 8)
    assert np.median(np.ptp(full, axis=1)) < 5
