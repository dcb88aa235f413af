"""Ctrl-C at any moment of any call leaves the model usable, with its results and its cache pages."""

import random
import signal
import threading
import time

import pytest

import foredraft

TEXTS = ["w5 w9 w30", "w6 w41 w6 w41 w8"]
SETTINGS = {"max_new_tokens": 8, "eos_token_id": []}


@pytest.fixture(scope="module")
def model(tiny_model_path):
    return foredraft.load(tiny_model_path)


@pytest.fixture(scope="module")
def calls(model):
    pipeline = foredraft.pipeline("text2text-generation", model, **SETTINGS)
    return {
        "generate": lambda: model.generate(TEXTS, **SETTINGS).token_ids,
        "stream": lambda: [result.token_ids for result in model.stream(iter(TEXTS), in_order=True, **SETTINGS)],
        "score": lambda: model.score(TEXTS, [["w8", "w9 w10"], "w7"]).token_log_probs,
        "pipeline": lambda: list(pipeline(iter(TEXTS))),
    }


@pytest.fixture(scope="module")
def right(calls):
    return {name: call() for name, call in calls.items()}


def assert_usable(model, calls, right):
    assert {name: call() for name, call in calls.items()} == right
    pool = model.target.cache.pool
    assert pool.free == pool.pages


def raising(after):
    """A function of any arguments that is interrupted at its n-th call."""
    calls = iter(range(after))

    def function(*arguments):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return arguments[-1]

    return function


@pytest.mark.parametrize("after", [0, 1, 5])
@pytest.mark.parametrize("settings", [
    lambda function: {"logits_processor": [function]},
    lambda function: {"stopping_criteria": [lambda *arguments: function(*arguments, False)]},
    lambda function: {"prefix_allowed_tokens_fn": lambda *arguments: function(*arguments, [5, 6, 7])},
])
def test_an_interrupt_in_a_function_of_the_caller(model, calls, right, settings, after):
    with pytest.raises(KeyboardInterrupt):
        model.generate(TEXTS, **SETTINGS, **settings(raising(after)))
    with pytest.raises(KeyboardInterrupt):
        list(model.stream(TEXTS, **SETTINGS, **settings(raising(after))))
    assert_usable(model, calls, right)


@pytest.mark.parametrize("after", [0, 1])
def test_an_interrupt_while_requests_are_read(model, calls, right, after):
    def requests():
        yield from TEXTS[:after]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(model.stream(requests(), batch_size=1, **SETTINGS))
    with pytest.raises(KeyboardInterrupt):
        list(foredraft.pipeline("text2text-generation", model, **SETTINGS)(requests()))
    assert_usable(model, calls, right)


@pytest.mark.parametrize("name", ["generate", "score"])
def test_an_interrupt_while_the_model_is_busy(model, calls, right, name):
    """The waiting call is interrupted; the stream that it waited for goes on."""
    opened, go_on = threading.Event(), threading.Event()
    found = []

    def read():
        with model.stream(iter(TEXTS), in_order=True, batch_size=1, **SETTINGS) as stream:
            found.append(next(stream).token_ids)
            opened.set()
            go_on.wait()
            found.extend(result.token_ids for result in stream)

    other = threading.Thread(target=read)
    other.start()
    opened.wait()
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted(calls[name], 0.05)
    finally:
        go_on.set()
        other.join()
    assert found == right["stream"]
    assert_usable(model, calls, right)


def interrupted(call, seconds):
    """Call, with an interrupt after some seconds unless it has returned."""
    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        return call()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("trials", [20, pytest.param(400, marks=pytest.mark.full)])
def test_an_interrupt_at_any_moment(model, calls, right, trials):
    draw, seconds, count = random.Random(trials), {}, 0
    for name, call in calls.items():
        began = time.perf_counter()
        call()
        seconds[name] = time.perf_counter() - began
    for _ in range(trials):
        name = draw.choice(list(calls))
        try:
            assert interrupted(calls[name], 1e-6 + draw.random() * seconds[name]) == right[name]
        except KeyboardInterrupt:
            count += 1
        assert_usable(model, calls, right)
    assert count
