"""model.stream and model.generate on any number of requests: order, laziness, per-request parameters, errors, cancelling."""

import random
import threading

import pytest

import foredraft
from foredraft.engine.runtime.requests import Request
from foredraft.errors import UserError

TEXTS = [f"w{5 + i} w9 w{30 + i} " * (1 + i % 7) for i in range(23)]


@pytest.fixture(scope="module")
def model(tiny_model_path):
    model = foredraft.load(tiny_model_path, drafter="lookup")
    model.target.end_token = -1  # random weights end too early to see anything
    return model


def test_a_list_of_any_length_is_what_each_text_gives_alone(model):
    options = dict(max_new_tokens=12, do_sample=True, temperature=0.8)
    out = model.generate(TEXTS, batch_size=4, seed=list(range(23)), **options)
    alone = [model.generate(text, seed=[seed], **options).token_ids[0] for seed, text in enumerate(TEXTS)]
    assert out.token_ids == alone and out.stats.requests == 23
    assert out.stats.slots == out.stats.passes * 4 and 0.5 < out.stats.slot_utilisation <= 1
    assert out.stats.emitted == sum(map(len, alone)) == 23 * 12
    assert abs(sum(out.stats.seconds[part] for part in ("encode", "draft", "verify", "other"))
               - out.stats.seconds["total"]) < 1e-6
    assert model.generate([]).token_ids == []
    one = model.generate("w5 w9", max_new_tokens=3)
    assert [r.token_ids for r in model.stream("w5 w9", max_new_tokens=3)] == one.token_ids


def test_results_come_as_they_end_or_in_order(model):
    requests = [Request(text, id=f"a{i}", max_new_tokens=1 + (7 * i) % 11) for i, text in enumerate(TEXTS)]
    ended = list(model.stream(requests, max_new_tokens=11, batch_size=5))
    ordered = list(model.stream(iter(requests), max_new_tokens=11, batch_size=5, in_order=True))
    assert [r.index for r in ordered] == list(range(23)) != [r.index for r in ended]
    assert sorted((r.index, r.id, r.token_ids) for r in ended) == [(r.index, r.id, r.token_ids) for r in ordered]
    assert [len(r.token_ids) for r in ordered] == [1 + (7 * i) % 11 for i in range(23)]
    assert [r.text for r in ordered] == [model.tokenizer.decode(r.token_ids) for r in ordered]


def test_requests_bring_their_own_parameters(model):
    own = [dict(draft_tokens=0), dict(do_sample=True, temperature=0.7, top_k=9, seed=4), dict(stop_strings="w9"),
           dict(max_new_tokens=3), dict(do_sample=True, top_p=0.5, seed=-8)]
    results = list(model.stream([Request(TEXTS[6], **options) for options in own], max_new_tokens=20, in_order=True))
    for options, result in zip(own, results, strict=True):
        options = dict(max_new_tokens=20) | options
        if "seed" in options:
            options["seed"] = [options["seed"]]
        assert model.generate(TEXTS[6], **options).token_ids == [result.token_ids]
    assert len({tuple(ids) for ids in model.generate([TEXTS[6]] * 2, seed=1, do_sample=True).token_ids}) == 2


def test_requests_are_read_as_there_is_room(model):
    read = []

    def endless():
        for i in range(10**9):
            read.append(i)
            yield TEXTS[i % 23]

    with model.stream(endless(), max_new_tokens=4, batch_size=3) as stream:
        for done, _ in enumerate(stream, 1):
            assert len(read) <= done + 3 + 3 + 3
            if done == 30:
                break
    assert model.target.cache.pool.free == model.target.cache.pool.pages
    assert list(stream) == []
    assert len(model.generate(TEXTS[:2], max_new_tokens=3).texts) == 2


def test_a_request_that_fails_is_a_result_and_the_others_go_on(model):
    bad = ["w5", "   ", Request([3, 100], id="x"), Request("w6", max_new_tokens=99), Request("w7", top_p=2.0), "w8 " * 30,
           Request(5), Request("w5", seed=2**63), "w9"]
    results = list(model.stream(bad, max_new_tokens=5, max_source=20, truncation=False, in_order=True))
    assert [r.finish_reason == "error" for r in results] == [False] + [True] * 7 + [False]
    assert [r.index for r in results] == list(range(9)) and results[2].id == "x"
    for result, match in zip(results[1:8], ("is empty", "outside 0..99", "max_new_tokens is 99", "top_p is 2.0",
                                            "input 6 has 31 tokens, the limit is 20", "input 7 is neither a text nor",
                                            "input 8 has seed 9223372036854775808"), strict=True):
        assert match in str(result.error) and result.token_ids == []
    cut = list(model.stream(bad[5:6], max_new_tokens=5, max_source=20))[0]
    assert cut.error is None and "were cut" in cut.warnings[0]
    # thousands of them do not pile up
    stream = model.stream([""] * 5000 + ["w5"], max_new_tokens=2)
    assert next(stream).index == 0 and len(stream._ready) == 0
    assert sum(result.error is None for result in stream) == 1


def test_cancelling(model):
    stream = model.stream([Request(text, id=i * 10) for i, text in enumerate(TEXTS)], max_new_tokens=30, batch_size=2,
                          in_order=True)
    assert not stream.cancel(0)
    assert next(stream).id == 0
    assert stream.cancel(20) and stream.cancel(30) and not stream.cancel(20) and not stream.cancel("never")
    results = list(stream)
    assert [r.id for r in results] == [i * 10 for i in range(1, 23)]
    assert [r.id for r in results if r.finish_reason == "cancelled"] == [20, 30]
    # those two had not begun
    assert stream.stats.requests == 21


@pytest.mark.parametrize("draft_tokens", [4, "auto"])
def test_any_mix_of_requests_in_any_order_is_what_each_gives_alone(model, draft_tokens):
    """Own distributions, seeds, K, limits and stop strings; random arrivals, some cancelled while they run or wait."""
    draw = random.Random(3)
    distributions = (dict(), dict(do_sample=True, temperature=0.6), dict(do_sample=True, top_k=9),
                     dict(do_sample=True, top_p=0.7))
    requests = []
    for i in range(60):
        own = draw.choice(distributions) | dict(seed=draw.randrange(2**40), draft_tokens=draw.randint(0, 4),
                                       max_new_tokens=draw.randint(1, 20))
        if draw.random() < 0.4:
            own["stop_strings"] = [f"w{draw.randint(3, 99)}" for _ in range(20)]
        requests.append(Request(draw.choice(TEXTS), id=i, **own))
    draw.shuffle(requests)
    results = {}
    with model.stream(iter(requests), max_new_tokens=20, draft_tokens=draft_tokens, batch_size=3) as stream:
        for result in stream:
            results[result.id] = result
            if draw.random() < 0.15:
                stream.cancel(draw.randrange(60))
    assert sorted(results) == list(range(60))
    cancelled = sum(result.finish_reason == "cancelled" for result in results.values())
    stopped = sum(result.finish_reason == "stop" for result in results.values())
    assert 0 < cancelled < 20 and stopped > 5
    for request in requests:
        own = request.settings | {"draft_tokens": 0, "seed": [request.settings["seed"]]}
        alone = model.generate(request.input, **own).token_ids[0]
        result = results[request.id]
        if result.finish_reason == "cancelled":
            alone = alone[: len(result.token_ids)]
        assert result.token_ids == alone and result.error is None


def test_a_streams_model_is_its_own_until_it_ends(model):
    stream = model.stream(TEXTS, max_new_tokens=5, batch_size=2)
    next(stream)
    with pytest.raises(UserError, match="still running"):
        model.generate("w5")
    with pytest.raises(UserError, match="still running"):
        next(model.with_drafter(None).stream(["w5"]))
    del stream
    assert model.generate("w5", max_new_tokens=2).texts

    def broken():
        yield "w5"
        raise RuntimeError("the reader broke")

    with pytest.raises(RuntimeError, match="the reader broke"):
        list(model.stream(broken(), max_new_tokens=3))
    assert model.generate("w5", max_new_tokens=2).texts


def test_memory(model):
    with pytest.raises(UserError, match=r"kv_memory is 0\.0 MB; a single request"):
        model.generate(TEXTS, kv_memory=20_000)
    truth = model.generate(TEXTS, max_new_tokens=9).token_ids
    assert model.generate(TEXTS, max_new_tokens=9, kv_memory=150_000).token_ids == truth
    assert model.target.cache.nbytes() <= 150_000
    with pytest.raises(UserError, match="kv_memory is 0"):
        model.generate(TEXTS, kv_memory=0)


def test_half_of_a_surrogate_pair_costs_one_request(model):
    results = list(model.stream(["w5", "half \ud83d of a pair", "w6"], max_new_tokens=3, in_order=True))
    assert [result.finish_reason for result in results] == ["length", "error", "length"]
    assert "input 2 has half of a surrogate pair" in str(results[1].error)


def test_sampling_arguments_without_sampling_are_named(model):
    for call in (model.generate, lambda text, **options: list(model.stream(text, **options))):
        with pytest.warns(UserWarning, match="temperature=0.5, top_k=3 without effect"):
            call("w5", max_new_tokens=2, temperature=0.5, top_k=3)


def test_requests_enter_while_others_run(model):
    """None is "nothing now": running sequences go on, and a request that comes later enters beside them."""
    steps, came = [], []

    def requests():
        yield Request(TEXTS[0], id="first", on_progress=lambda progress: steps.append(len(progress.token_ids)))
        while len(steps) < 5:
            yield None
        came.append(len(steps))
        yield Request(TEXTS[1], id="second", max_new_tokens=2)
        while not came[1:]:
            yield None

    with model.stream(requests(), max_new_tokens=30, draft_tokens=0, batch_size=2) as stream:
        assert next(stream).id == "second" and came == [5]
        came.append(len(steps))
        result = next(stream)
        assert result.id == "first" and list(stream) == []
    assert [r.index for r in (result,)] == [0] and came[1] < 12
    assert result.token_ids == model.generate(TEXTS[0], max_new_tokens=30).token_ids[0]


def test_progress_of_a_request(model):
    seen = []
    request = Request(TEXTS[6], logprobs=2, on_progress=seen.append)
    result = next(model.stream([request], max_new_tokens=25))
    assert seen[0].token_ids == [] and len(seen) == 1 + result.stats.steps
    for name in ("token_ids", "proposers", "logprobs"):
        assert [one for progress in seen for one in getattr(progress, name)] == getattr(result, name)
    drafted = sum(len(progress.rejected) for progress in seen) + result.stats.accepted
    # what was drafted past the end of the output was neither accepted nor rejected
    assert 0 < sum(len(progress.rejected) for progress in seen) and drafted <= result.stats.drafted <= drafted + 5
    # nothing is reported twice or late where a stop string cuts the last step
    stop = model.tokenizer.id_to_token(result.token_ids[9])
    seen.clear()
    cut = next(model.stream([Request(TEXTS[6], stop_strings=stop, on_progress=seen.append)], max_new_tokens=25))
    assert [token for progress in seen for token in progress.token_ids] == cut.token_ids and len(cut.token_ids) <= 10


def test_progress_that_fails_costs_one_request(model):
    results = list(model.stream(["w5", Request("w6", on_progress=lambda progress: 1 / 0), "w7"], max_new_tokens=4,
                                in_order=True))
    assert [result.finish_reason for result in results] == ["length", "error", "length"]
    assert "input 2: on_progress failed with ZeroDivisionError" in str(results[1].error)


def test_another_thread_cancels_within_a_step(model):
    """It does not wait for the next result, however many steps that takes."""
    steps, at = [], []
    started = threading.Event()

    def on_progress(progress):
        steps.append(progress)
        started.set()

    def cancel():
        started.wait(60)
        at.append(len(steps))
        assert stream.cancel("endless") and stream.stats.requests == 1
        at.append(len(steps))

    stream = model.stream([Request(TEXTS[6], id="endless", on_progress=on_progress)], max_new_tokens=3000, draft_tokens=0)
    thread = threading.Thread(target=cancel)
    thread.start()
    result = next(stream)
    thread.join()
    assert result.finish_reason == "cancelled" and at[1] - at[0] < 100 and len(result.token_ids) < 2000
    assert list(stream) == [] and model.generate("w5", max_new_tokens=2).texts
