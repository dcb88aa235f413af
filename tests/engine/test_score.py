"""Model.score equals transformers' log-softmax of labels, whatever the batch, and releases what it took."""

import threading

import pytest
import torch

import foredraft
from foredraft.engine.models.t5_cuda import T5Cuda
from foredraft.engine.models.t5_cuda_weights import load_cuda_weights
from foredraft.engine.score import Scores, token_log_probs
from foredraft.errors import UserError

SOURCES = [[5, 9, 33, 1], [*range(3, 90), 1], [1], [7, 7, 8, 1]]
TARGETS = [[[8, 30, 4, 1], [44]], [[*range(40, 99), *range(3, 30), 1]], [[1], [9, 9, 9], [2, 60, 1]], [[12, 1]]]


def expected(path, sources, targets):
    """By transformers: the log-probabilities of each target's tokens, one forward pass for each target."""
    from transformers import T5ForConditionalGeneration

    theirs = T5ForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval()
    found = []
    with torch.inference_mode():
        for source, several in zip(sources, targets, strict=True):
            for target in several:
                labels = torch.tensor([target])
                log_probs = theirs(input_ids=torch.tensor([source]), labels=labels).logits.log_softmax(-1)
                found.append(log_probs[0].gather(1, labels[0, :, None])[:, 0].tolist())
    return found


def assert_close(scores: Scores, right):
    assert [len(one) for one in scores.token_log_probs] == [len(one) for one in right]
    for ours, theirs, total in zip(scores.token_log_probs, right, scores.sums, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
        assert total == pytest.approx(sum(ours), abs=1e-9)


def test_scores_equal_transformers(tiny_checkpoint):
    scores = foredraft.load(tiny_checkpoint, drafter=None).score(SOURCES, TARGETS)
    assert_close(scores, expected(tiny_checkpoint, SOURCES, TARGETS))
    assert scores.token_ids == [target for several in TARGETS for target in several]


def test_scores_of_the_embedded_model_equal_transformers():
    from foredraft import embedded

    model = foredraft.load()
    sources = ["The council said on Monday that the bridge will close for a year.", "A man has been arrested."]
    targets = ["The bridge will close.", ["Police arrested a man.", "true", "false"]]
    ids = [model.tokenizer.encode(source).ids for source in sources]
    wanted = [[model.tokenizer.encode(targets[0]).ids], [model.tokenizer.encode(target).ids for target in targets[1]]]
    scores = model.score(sources, targets)
    assert_close(scores, expected(embedded.TARGET, ids, wanted))
    # a text ends as the tokenizer ends it
    assert all(tokens[-1] == 1 for tokens in scores.token_ids)


@pytest.mark.parametrize("backend", ["reference", pytest.param("triton", marks=pytest.mark.full)])
def test_scores_on_cuda_equal_transformers(tiny_checkpoint, backend):
    """The same code through T5Cuda, under Triton's interpreter."""
    pytest.importorskip("triton")
    target = T5Cuda(load_cuda_weights(tiny_checkpoint, "cpu", weights="fp32"), backend)
    sources, targets = SOURCES[:3:2], [[[8, 30, 4, 1], [44]], [[9, 9, 9]]]
    found = token_log_probs(target, [torch.tensor(source) for source in sources], targets, 2, 3)
    found = [one for several in found for one in several]
    for ours, theirs in zip(found, expected(tiny_checkpoint, sources, targets), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)


def test_scores_depend_neither_on_the_batch_nor_on_the_chunks(tiny_checkpoint):
    model = foredraft.load(tiny_checkpoint, drafter=None)
    right = model.score(SOURCES, TARGETS).token_log_probs
    for batch_size in (1, 2, 3):
        assert model.score(SOURCES, TARGETS, batch_size=batch_size).token_log_probs == right
    alone = [model.score([source], [target]).token_log_probs[0]
             for source, several in zip(SOURCES, TARGETS, strict=True) for target in several]
    assert alone == right
    tensors = [torch.tensor(source) for source in SOURCES]
    for chunk in (1, 2, 5, 100):
        found = token_log_probs(model.target, tensors, TARGETS, 3, chunk)
        assert [one for several in found for one in several] == right


def test_targets_of_one_source_share_its_encoding(tiny_model_path, monkeypatch):
    model, admitted = foredraft.load(tiny_model_path), []
    admit = model.target.admit
    monkeypatch.setattr(model.target, "admit", lambda at, sources: admitted.extend(sources) or admit(at, sources))
    model.score(["w5 w6", "w7"], [["w8", "w9 w10", "w11"], "w8"], batch_size=2)
    assert len(admitted) == 2


def test_every_shape_of_input_gives_the_same_scores(tiny_model_path):
    model = foredraft.load(tiny_model_path)
    right = model.score(["w5 w6"], [["w8 w9", "w10"]]).sums
    assert model.score("w5 w6", ["w8 w9", "w10"]).sums == right
    assert model.score("w5 w6", "w8 w9").sums == right[:1]
    assert model.score(["w5 w6"], ["w8 w9"]).sums == model.score(["w5 w6"], "w8 w9").sums == right[:1]
    assert model.score([[5, 6, 1]], [[8, 9, 1]]).sums == right[:1]
    assert model.score("w5 w6", [8, 9, 1]).sums == right[:1]
    assert model.score("w5 w6", torch.tensor([8, 9, 1])).sums == right[:1]
    assert model.score([(5, 6, 1)], [([8, 9, 1], "w10")]).sums == right
    assert model.score(iter(["w5 w6"] * 2), iter(["w8 w9", "w10"])).sums == right
    assert model.score([], []) == Scores()


def test_a_long_source_is_cut_as_generate_cuts_it(tiny_model_path):
    model = foredraft.load(tiny_model_path)
    scores = model.score("w5 w6 w7 w8", "w9", max_source=3)
    assert scores.sums == model.score([[5, 6, 1]], ["w9"]).sums
    assert scores.warnings == ["source 1 has 5 tokens; the first 3 were read, 2 were cut (the limit is 3)"]


@pytest.mark.parametrize(("sources", "targets", "message"), [
    (None, "w5", "the input is of type NoneType"),
    (["w5"], None, "the input is of type NoneType"),
    (["w5"], [None], "the target of source 1 is of type NoneType; give a text"),
    (["w5", "w6"], ["w7"], "1 targets for 2 sources; give one target, or one list of targets, for each source"),
    (["w5"], [[]], "the target of source 1 is empty"),
    (["w5", ""], ["w6", "w7"], "source 2 is empty"),
    (["w5"], [["w6", " "]], "target 2 of source 1 is empty"),
    (["w5"], [[5, 100]], r"target 1 of source 1 holds a token id outside 0\.\.99"),
    (["w5"], [[[5], 6]], "target 2 of source 1 is neither a text nor"),
    ("w5", b"w6", "the target of source 1 is of type bytes"),
    ("w5", {"w6": 1}, "the target of source 1 is of type dict"),
])
def test_wrong_inputs_are_one_line(tiny_model_path, sources, targets, message):
    model = foredraft.load(tiny_model_path)
    with pytest.raises(UserError, match=message) as found:
        model.score(sources, targets)
    assert "\n" not in str(found.value)


def test_wrong_settings_are_one_line(tiny_model_path):
    model = foredraft.load(tiny_model_path)
    with pytest.raises(UserError, match="batch_size is 0"):
        model.score("w5", "w6", batch_size=0)
    with pytest.raises(UserError, match="max_source is 1"):
        model.score("w5", "w6", max_source=1)


def test_a_failure_releases_pages_and_model(tiny_model_path, monkeypatch):
    model = foredraft.load(tiny_model_path)
    right = model.score("w5 w6", ["w8 w9", "w10"]).sums
    text = model.generate("w5 w6", max_new_tokens=4).token_ids
    for error in (RuntimeError, KeyboardInterrupt):
        for method in ("admit", "decode", "logits"):
            with monkeypatch.context() as patched:
                def fail(*_arguments, error=error):
                    raise error

                patched.setattr(model.target, method, fail)
                with pytest.raises(error):
                    model.score("w5 w6", ["w8 w9", "w10"])
            assert model.target.cache.pool.free == model.target.cache.pool.pages
            assert model.score("w5 w6", ["w8 w9", "w10"]).sums == right
            assert model.generate("w5 w6", max_new_tokens=4).token_ids == text


def test_score_waits_for_a_stream_of_another_thread_and_refuses_its_own(tiny_model_path):
    model = foredraft.load(tiny_model_path)
    model.target.end_token = -1
    right, found = model.score("w5", "w6").sums, []
    with model.stream(["w5 w6", "w7"], max_new_tokens=8, batch_size=1) as stream:
        next(stream)
        with pytest.raises(UserError, match="still running"):
            model.score("w5", "w6")
        other = threading.Thread(target=lambda: found.append(model.score("w5", "w6").sums))
        other.start()
        other.join(0.1)
        assert not found
    other.join()
    assert found == [right]
