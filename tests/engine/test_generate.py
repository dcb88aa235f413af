"""`generate`: texts and tokens, order, stats, streamers, stop strings, warnings, refusals."""

import pytest

import foredraft
from foredraft.errors import UserError

TEXTS = ["w5 w9 w33 w5 w9 w40", "w7 w8 w9", "w50 " * 60, "w3"]


@pytest.fixture(scope="module")
def model(tiny_model_path):
    model = foredraft.load(tiny_model_path, drafter="lookup")
    model.target.end_token = -1  # random weights end too early to see anything
    return model


def test_speculation_changes_nothing_but_the_steps(model):
    plain = model.with_drafter(None).generate(TEXTS, max_new_tokens=40)
    fast = model.generate(TEXTS, max_new_tokens=40, draft_tokens=6, batch_size=3)
    assert fast.token_ids == plain.token_ids and fast.texts == plain.texts
    assert [len(ids) for ids in fast.proposers] == [len(ids) for ids in fast.token_ids]
    assert plain.stats.steps == plain.stats.emitted == 160 and plain.stats.drafted == 0
    # random weights repeat themselves, so some drafts are accepted; how many means nothing
    assert 0 < fast.stats.accepted <= fast.stats.tested <= fast.stats.drafted
    assert fast.stats.steps == fast.stats.emitted - fast.stats.accepted
    assert sum(o > 0 for row in fast.proposers for o in row) == fast.stats.accepted


def test_seeded_sampling_is_reproducible_and_independent_of_batch_and_drafts(model):
    options = dict(max_new_tokens=20, do_sample=True, temperature=0.9, top_k=20, top_p=0.95, seed=11)
    outputs = [model.generate(TEXTS, batch_size=size, draft_tokens=K, **options).token_ids
               for size, K in ((4, 5), (1, 3), (3, 0))]
    assert outputs[0] == outputs[1] == outputs[2]
    assert model.generate(TEXTS, **options | dict(seed=12)).token_ids != outputs[0]
    same = ["w7 w8 w9"] * 2
    unseeded = model.generate(same, max_new_tokens=20, do_sample=True).token_ids
    assert unseeded[0] != unseeded[1]


def test_tokens_and_texts_are_the_same_request(model):
    ids = [model.tokenizer.encode(text).ids for text in TEXTS]
    assert model.generate(ids, max_new_tokens=8).token_ids == model.generate(TEXTS, max_new_tokens=8).token_ids
    assert model.generate(TEXTS[0], max_new_tokens=8).token_ids == model.generate(TEXTS[:1], max_new_tokens=8).token_ids


class Recorder:
    def __init__(self):
        self.puts, self.ended = [], False

    def put(self, value):
        self.puts.append(value.tolist())

    def end(self):
        self.ended = True


def test_streamers_see_every_token_once(model):
    recorder = Recorder()
    out = model.generate(TEXTS[0], max_new_tokens=30, streamer=recorder)
    assert recorder.puts[0] == [0] and recorder.ended
    assert [token for put in recorder.puts[1:] for token in put] == out.token_ids[0]
    assert any(len(put) > 1 for put in recorder.puts[1:])
    with pytest.raises(UserError, match="takes one input, not 2"):
        model.generate(TEXTS[:2], streamer=recorder)


def test_the_streamer_of_transformers_works(model, capsys):
    from transformers import TextStreamer

    class Tokenizer:
        def decode(self, ids, **_options):
            return model.tokenizer.decode(list(ids), skip_special_tokens=True)

    out = model.generate(TEXTS[0], max_new_tokens=12, streamer=TextStreamer(Tokenizer(), skip_prompt=True))
    assert capsys.readouterr().out.split() == out.texts[0].split()


@pytest.mark.parametrize("K", [0, 1, 5])
def test_stop_strings_cut_inside_a_draft_as_plain_decoding_would(model, K):
    free = model.generate(TEXTS, max_new_tokens=40).token_ids
    for place in (1, 7, 20):
        stop = f"w{free[0][place]}"
        out = model.generate(TEXTS, max_new_tokens=40, draft_tokens=K, stop_strings=stop)
        for ids, whole in zip(out.token_ids, free, strict=True):
            ends = [i for i in range(1, 41) if stop in model.tokenizer.decode(whole[:i])]
            assert ids == whole[: ends[0] if ends else 40]
        assert out.stats.accepted == sum(o > 0 for row in out.proposers for o in row)
        assert out.stats.emitted == sum(len(ids) for ids in out.token_ids)


def test_long_sources_are_cut_with_a_warning(model):
    out = model.generate(TEXTS, max_new_tokens=4, max_source=10)
    assert out.warnings == ["input 3 has 61 tokens; the first 10 were read, 51 were cut (the limit is 10)"]
    ids = model.tokenizer.encode(TEXTS[2]).ids
    assert model.generate([ids[:9] + [-1 % 100]], max_new_tokens=4).token_ids != []
    assert model.generate(TEXTS[:2], max_new_tokens=4).warnings == []


@pytest.mark.parametrize("inputs, options, match", [
    (["w5", "  "], {}, "input 2 is empty"),
    ([[]], {}, "input 1 is empty"),
    ([[5, 100]], {}, "outside 0..99"),
    (["w5"], dict(max_new_tokens=0), "max_new_tokens is 0"),
    (["w5"], dict(draft_tokens=-1), "draft_tokens is -1"),
    (["w5"], dict(draft_tokens=65), "between 0 and 64"),
    (["w5"], dict(do_sample=True, temperature=0.0), "temperature is 0.0"),
    (["w5"], dict(top_p=0.0), "top_p is 0.0"),
    (["w5"], dict(top_k=-1), "top_k is -1"),
    (["w5"], dict(seed=-1), "seed is -1"),
    (["w5"], dict(stop_strings=[""]), "empty text"),
])
def test_refusals(model, inputs, options, match):
    with pytest.raises(UserError, match=match):
        model.generate(inputs, **options)


def test_devices(tiny_model_path):
    with pytest.raises(UserError, match="use 'cpu'"):
        foredraft.load(tiny_model_path, device="tpu")
    with pytest.raises(UserError, match="use device 'cpu'"):
        foredraft.load(tiny_model_path, device="cuda")


def test_a_model_without_tokenizer_takes_tokens(tiny_checkpoint):
    model = foredraft.load(tiny_checkpoint, drafter=None)
    assert model.generate([[5, 9, 1]], max_new_tokens=5).texts == [None]
    with pytest.raises(UserError, match="there is no tokenizer.json"):
        model.generate("w5")
    with pytest.raises(UserError, match="drafter 'eagle' is not known"):
        model.with_drafter("eagle")


@pytest.mark.parametrize("wrong", [
    None, 5, {"article": "text"}, b"text", [5, 6], [None], [b"text"], [{1: 2}], [[1.5]], [["w5"]]])
def test_wrong_types_are_one_line(model, wrong):
    with pytest.raises(UserError) as error:
        model.generate(wrong, max_new_tokens=2)
    assert "give a text" in str(error.value) or "give one of the two" in str(error.value)


def test_hypotheses_have_texts(tiny_model_path):
    model = foredraft.load(tiny_model_path)
    out = model.generate(["w5 w9 w33", "w7 w8"], num_beams=3, num_return_sequences=2, max_new_tokens=6)
    assert len(out.texts) == 4
    assert out.texts == [model.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in out.token_ids]
