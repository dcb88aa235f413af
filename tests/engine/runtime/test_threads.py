"""Eight threads with mixed calls on models that share weights: every result is what one thread gets."""

import random
import sys
import threading

import pytest

import foredraft
from foredraft.engine.runtime.requests import Request

TEXTS = [
    "The old bridge will close for a year.", "Otters have returned to the river.", "The night train runs again.",
    "A man of 61 was chosen to look after a lighthouse on a lonely island in the northern sea.",
    "Rain is expected on Sunday, and wind.", "The school cooks its own lunch, and the cooks have won a prize for it."]
# the embedded model would end such short texts at once
SETTINGS = {"max_new_tokens": 6, "eos_token_id": []}
THREADS = 8


def whole(stream):
    """A stream's tokens by id; a cancelled request's are compared as far as they go."""
    return {result.id: result.token_ids for result in stream if result.finish_reason != "cancelled"}


class Calls:
    """What a thread may do. Each call returns a value that depends on the texts alone, or a part of it: `equal` compares."""

    def __init__(self):
        model = foredraft.load()
        self.models = [model, model.with_drafter(None)]
        self.pipelines = [foredraft.pipeline("summarization", each, **SETTINGS) for each in self.models]

    def generate(self, draw, texts):
        return draw.choice(self.models).generate(texts, **SETTINGS).token_ids

    def adaptive(self, draw, texts):
        return self.models[0].generate(texts, **SETTINGS, draft_tokens="auto").token_ids

    def sampled(self, draw, texts):
        return draw.choice(self.models).generate(texts, **SETTINGS, do_sample=True, seed=7).token_ids

    def processed(self, draw, texts):
        return draw.choice(self.models).generate(
            texts, **SETTINGS, no_repeat_ngram_size=2, repetition_penalty=1.3).token_ids

    def score(self, draw, texts):
        return draw.choice(self.models).score(texts, [["true", "false"]] * len(texts), batch_size=2).token_log_probs

    def pipeline(self, draw, texts):
        return draw.choice(self.pipelines)(texts)

    def pipeline_generator(self, draw, texts):
        return [record for (record,) in draw.choice(self.pipelines)(iter(texts), batch_size=1)]

    def stream(self, draw, texts):
        return whole(self._stream(draw, texts))

    def cancelled(self, draw, texts):
        with self._stream(draw, texts) as stream:
            first = next(stream)
            stream.cancel(draw.randrange(len(texts)))
            return {first.id: first.token_ids} | whole(stream)

    def cancelled_by_another(self, draw, texts):
        stream, number = self._stream(draw, texts), draw.randrange(len(texts))
        other = threading.Thread(target=stream.cancel, args=(number,))
        other.start()
        found = whole(stream)
        other.join()
        return found

    def closed(self, draw, texts):
        stream = self._stream(draw, texts)
        first = next(stream)
        stream.close()
        return {first.id: first.token_ids}

    def closed_by_another(self, draw, texts):
        stream = self._stream(draw, texts)
        other = threading.Thread(target=stream.close)
        other.start()
        found = whole(stream)
        other.join()
        return found

    def dropped(self, draw, texts):
        """A stream that is left half read, and a generator that is never read."""
        draw.choice(self.pipelines)(iter(texts))
        first = next(self._stream(draw, texts))
        return {first.id: first.token_ids}

    def _stream(self, draw, texts):
        return draw.choice(self.models).stream(
            [Request(text, id=number) for number, text in enumerate(texts)], **SETTINGS,
            batch_size=draw.choice([1, 2]))


NAMES = [name for name in vars(Calls) if not name.startswith("_")]


def equal(found, right):
    """Streams may have lost requests that were cancelled."""
    return found.items() <= right.items() if isinstance(found, dict) else found == right


@pytest.fixture(scope="module")
def calls():
    return Calls()


@pytest.fixture(scope="module")
def right(calls):
    """What one thread gets, by name and texts: each pair of texts that `picked` may give."""
    draw = random.Random(0)
    found = {}
    for name in NAMES:
        for first in range(len(TEXTS)):
            texts = picked(first)
            if name in ("cancelled", "cancelled_by_another", "closed", "closed_by_another", "dropped"):
                found[name, first] = found["stream", first]
            else:
                found[name, first] = getattr(calls, name)(draw, texts)
    return found


def picked(first):
    return [TEXTS[first], TEXTS[(2 * first + 1) % len(TEXTS)]]


@pytest.mark.parametrize("number_of_calls", [5, pytest.param(200, marks=pytest.mark.full)])
def test_eight_threads_get_what_one_thread_gets(calls, right, number_of_calls):
    wrong, failed = [], []

    def work(number):
        draw = random.Random(number)
        for _ in range(number_of_calls):
            name, first = draw.choice(NAMES), draw.randrange(len(TEXTS))
            try:
                found = getattr(calls, name)(draw, picked(first))
                if not equal(found, right[name, first]):
                    wrong.append((name, first, found))
            except Exception as error:
                failed.append((name, first, error))

    interval = sys.getswitchinterval()
    # threads change places more often than they would, so that races show
    sys.setswitchinterval(1e-4)
    try:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong and not failed
    # nothing is left behind
    pool = calls.models[0].target.cache.pool
    assert pool.free == pool.pages


def test_all_calls_are_compared_with_something(calls, right):
    """`right` tells texts and kinds of calls apart, and every kind of call is made in a short run too."""
    assert len({str(right["generate", first]) for first in range(len(TEXTS))}) == len(TEXTS)
    for name in ("sampled", "score", "pipeline"):
        assert len({str(right[name, first]) for first in range(len(TEXTS))}) == len(TEXTS)
    draws = [random.Random(number) for number in range(THREADS)]
    assert {draw.choice(NAMES) for draw in draws for _ in range(5)} <= set(NAMES)
