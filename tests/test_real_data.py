"""The embedded family on CNN/DailyMail articles (FOREDRAFT_DATA): speculative decoding is lossless, and lookup copies."""

import gzip
import json

import pytest

import foredraft
from foredraft import embedded
from foredraft.engine.drafters.registry import PROPOSERS

pytestmark = pytest.mark.realdata


@pytest.fixture(scope="module")
def articles(real_data):
    with gzip.open(real_data / "cnndm" / "test.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line)["article"] for line, _ in zip(lines, range(12), strict=False)]


@pytest.fixture(scope="module")
def model():
    return foredraft.load(drafter=None)


@pytest.mark.parametrize("drafter", ["lookup", "ngram"])
@pytest.mark.parametrize(
    "sampling", [dict(), dict(do_sample=True, seed=5), dict(do_sample=True, seed=6, temperature=0.7, top_p=0.9)])
def test_speculative_output_equals_plain_output(model, articles, drafter, sampling):
    plain = model.generate(articles, max_new_tokens=48, batch_size=4, **sampling)
    for K, size in ((1, 5), (5, 1), (8, 12)):
        fast = model.with_drafter(drafter).generate(articles, max_new_tokens=48, draft_tokens=K, batch_size=size,
                                                    **sampling)
        assert fast.token_ids == plain.token_ids
        assert fast.stats.accepted > 0 and fast.stats.steps < plain.stats.steps


def test_lookup_copies_from_the_article(model, articles):
    out = model.with_drafter("lookup").generate(articles, max_new_tokens=48)
    copied = sum(o == PROPOSERS.index("lookup") for proposers in out.proposers for o in proposers)
    assert copied == out.stats.accepted > 0.2 * out.stats.emitted


def test_greedy_equals_transformers(model, articles):
    import torch
    from transformers import T5ForConditionalGeneration

    theirs = T5ForConditionalGeneration.from_pretrained(embedded.TARGET, dtype=torch.float32).eval()
    limit = model.source_limit
    for article in articles[:4]:
        source = model.tokenizer.encode(article).ids
        source = source if len(source) <= limit else source[: limit - 1] + [1]
        expected = theirs.generate(torch.tensor([source]), max_new_tokens=40, do_sample=False, num_beams=1)[0, 1:].tolist()
        assert model.generate([source], max_new_tokens=40).token_ids == [expected]
