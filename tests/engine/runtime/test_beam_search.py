"""Beam search: tokens, scores and beams of transformers, in any batch, with drafts and without."""

import random

import numpy as np
import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

import foredraft
from foredraft import embedded
from foredraft.engine.params import SamplingParams
from foredraft.engine.runtime.beam_search import BeamSearch
from foredraft.engine.runtime.requests import Job
from foredraft.errors import UserError
from foredraft.kernels.sampling.beam_candidates import BEAM_CANDIDATES
from foredraft.kernels.step.beam_step import BEAM_STEP, NEVER

# Logits of two implementations differ by less; so do sums of 40 of them, nearly always.
TIE = 2e-4
# Below it are continuations that may not be chosen; where there are no others, their order means nothing.
FORBIDDEN = -1e5
KINDS = {
    "v1.0": dict(feed_forward_proj="relu", initializer_factor=1.5),
    # a larger factor gives logits of 50, whose rounding is above 1e-4
    "v1.1": dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "deep": dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False, num_layers=3),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Random checkpoints whose beams end at different lengths."""
    found = {}
    for number, (kind, changes) in enumerate(KINDS.items()):
        torch.manual_seed(number)
        sizes = dict(vocab_size=100, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
        model = T5ForConditionalGeneration(T5Config(**sizes | dict(decoder_start_token_id=0) | changes)).eval()
        folder = tmp_path_factory.mktemp("checkpoint") / kind.replace(".", "_")
        model.save_pretrained(folder)
        found[kind] = (model, foredraft.load(folder, drafter="lookup"))
    return found


def random_source(draw):
    tokens = [draw.randrange(3, 100) for _ in range(draw.randint(1, 127 if draw.random() < 0.15 else 60))]
    return (tokens[: len(tokens) // 3 + 1] * 3)[: len(tokens)] + [1]


def theirs(model, source, **arguments):
    """Hypotheses (tokens, score, beams) of transformers, and its closest decision (`replayed`)."""
    with torch.no_grad():
        out = model.generate(torch.tensor([source]), return_dict_in_generate=True, output_scores=True, **arguments)
    found = []
    for row, score, beams in zip(out.sequences, out.sequences_scores, out.beam_indices, strict=True):
        n = int((beams >= 0).sum())
        found.append((row[1 : n + 1].tolist(), float(score), beams[:n].tolist()))
    return found, replayed([step.numpy() for step in out.scores], found, arguments)


def replayed(scores, wanted, arguments, backend="numba"):
    """Our search on transformers' own scores gives exactly its hypotheses.

    Returns the smallest gap between two candidates of which one could take the other's place: where the target's logits
    differ by rounding, only a decision as close as that may be another one.
    """
    ends = arguments.get("eos_token_id", 1)
    ends = np.array(ends if isinstance(ends, list) else [ends], np.int64)
    n, V, T = *scores[0].shape, arguments["max_new_tokens"] + 1
    k = max(2, len(ends) + 1) * n
    tokens, running, lineage = np.zeros((n, T), np.int64), np.full(n, NEVER), np.full((n, T), -1, np.int32)
    running[0] = 0
    finished = tokens.copy(), np.full(n, NEVER), lineage.copy(), np.ones(n, np.int64), np.zeros(n, np.bool_)
    improvable, parents, gap = np.ones(1, np.bool_), np.zeros(n, np.int64), np.inf
    stopping = {False: 0, True: 1, "never": 2}[arguments.get("early_stopping", False)]
    penalty = float(arguments.get("length_penalty", 1.0))
    for step, logits in enumerate(scores):
        values, indices = np.empty(k + 1, np.float32), np.empty(k + 1, np.int64)
        rows = np.arange(n) if step else np.zeros(n, np.int64)
        BEAM_CANDIDATES[backend](logits[:, None], rows, 0, running, False, False, 0, 0, values, indices)
        real = values[values > NEVER / 2]
        gap = min([gap, *(real[:-1] - real[1:])])
        is_over = BEAM_STEP[backend](values[:k].copy(), indices[:k].copy(), np.zeros(k, np.bool_), V, step + 1, T, ends,
                                     penalty, stopping, tokens, running, lineage, *finished, improvable, parents)
        kept = np.sort(finished[1][finished[4]])
        best = running[0] / np.float32((T - 1 if stopping == 2 and penalty > 0 else step + 1) ** penalty)
        gap = min([gap, *(kept[1:] - kept[:-1]), *abs(best - kept)])
    assert is_over
    for i, (their_tokens, score, beams) in enumerate(wanted):
        if score < FORBIDDEN:
            continue
        length = finished[3][i]
        assert finished[0][i, 1:length].tolist() == their_tokens and finished[2][i, : length - 1].tolist() == beams
        assert abs(finished[1][i] - score) <= 1e-6 * abs(score)
    return gap


def ours(result):
    return [(one.token_ids, one.score, one.beams) for one in result.hypotheses]


def check_equal(found, wanted, context):
    """Tokens, beams and scores are equal, unless transformers decided between candidates closer than TIE."""
    hypotheses, gap = wanted
    for (tokens, score, beams), (their_tokens, their_score, their_beams) in zip(found, hypotheses, strict=True):
        if their_score < FORBIDDEN:
            assert score < FORBIDDEN
        elif (tokens, beams) != (their_tokens, their_beams):
            assert gap < TIE, (context, gap)
            return False
        else:
            # rounding of the logits: at most 1e-4 for each token
            n = len(tokens)
            assert abs(score - their_score) < 1e-4 * n / n ** context.get("length_penalty", 1.0), context
    return True


def random_arguments(draw):
    beams = draw.choice((1, 2, 3, 4, 5, 8))
    arguments = dict(num_beams=beams, length_penalty=draw.choice((0.0, 0.6, 1.0, 2.0, -1.0)),
                     early_stopping=draw.choice((True, False, "never")), num_return_sequences=draw.randint(1, beams),
                     max_new_tokens=128 if draw.random() < 0.04 else draw.choice((1, 2, 7, 20, 40)))
    if beams == 1:
        arguments |= dict(num_beams=2)
    for name, value in (("no_repeat_ngram_size", 2), ("repetition_penalty", 1.3), ("min_new_tokens", 1),
                        ("eos_token_id", [1, 7]), ("forced_eos_token_id", 1), ("encoder_no_repeat_ngram_size", 2),
                        ("renormalize_logits", True), ("bad_words_ids", [[5], [9, 9]])):
        if draw.random() < 0.2:
            arguments[name] = value
    return arguments


def compare(checkpoints, seed, count):
    """Each source alone by transformers, and all together, beside greedy and sampled requests, by us with K drafts."""
    draw, ties, total = random.Random(seed), 0, 0
    for _ in range(count):
        reference, model = checkpoints[draw.choice(list(checkpoints))]
        requests, wanted = [], {}
        for i in range(6):
            source, arguments = random_source(draw), random_arguments(draw)
            wanted[i] = theirs(reference, source, **arguments), arguments
            requests.append(foredraft.Request(source, id=i, draft_tokens=draw.choice((0, 1, 4)), **arguments))
        greedy = [foredraft.Request(random_source(draw), id=10 + i, max_new_tokens=12, num_beams=1,
                                    **({"do_sample": True, "seed": 3} if i else {})) for i in range(2)]
        requests += greedy
        draw.shuffle(requests)
        with model.stream(iter(requests), max_new_tokens=128, num_beams=8, draft_tokens=4, batch_size=3) as stream:
            results = {result.id: result for result in stream}
        for i, (expected, arguments) in wanted.items():
            ties += not check_equal(ours(results[i]), expected, arguments)
            total += 1
        for request in greedy:
            own = request.settings | ({"seed": [3]} if "seed" in request.settings else {})
            assert results[request.id].token_ids == model.generate([request.input], draft_tokens=0, **own).token_ids[0]
    assert ties <= total // 10, (ties, total)


def test_mixed_batches_give_transformers_hypotheses(checkpoints):
    compare(checkpoints, 0, 4)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(1, 9))
def test_500_sources_give_transformers_hypotheses(checkpoints, seed):
    compare(checkpoints, seed, 11)


@pytest.fixture(scope="module")
def embedded_cases():
    """Sources, arguments, and transformers' hypotheses of the embedded model."""
    reference = T5ForConditionalGeneration.from_pretrained(embedded.TARGET, dtype=torch.float32).eval()
    tokenizer, found = foredraft.load(drafter=None).tokenizer, []
    for path in sorted((embedded.TARGET.parent / "texts").glob("*.txt"))[:3]:
        source = tokenizer.encode(path.read_text()).ids[:200] + [1]
        for arguments in (dict(num_beams=4), dict(num_beams=3, no_repeat_ngram_size=3, length_penalty=2.0)):
            arguments |= dict(max_new_tokens=40, num_return_sequences=2)
            found.append((source, arguments, theirs(reference, source, **arguments)))
    return found


@pytest.mark.full
@pytest.mark.parametrize("drafter", [None, "lookup", "ngram", "lstm", "lookup+ngram", "self:0"])
def test_the_embedded_model_with_every_drafter(embedded_cases, drafter):
    model = foredraft.load(drafter=drafter)
    for source, arguments, wanted in embedded_cases:
        (result,) = model.stream([source], **arguments)
        assert check_equal(ours(result), wanted, arguments)


def test_drafts_save_passes_and_change_nothing(checkpoints):
    draw, saved = random.Random(5), 0
    for kind in KINDS:
        _, model = checkpoints[kind]
        sources = [random_source(draw) for _ in range(6)]
        arguments = dict(num_beams=3, num_return_sequences=3, max_new_tokens=30, length_penalty=0.6)
        plain = model.generate(sources, draft_tokens=0, **arguments)
        for K in (1, 3, 8):
            drafted = model.generate(sources, draft_tokens=K, **arguments)
            assert (drafted.token_ids, drafted.sequence_scores, drafted.beam_indices) == (
                plain.token_ids, plain.sequence_scores, plain.beam_indices)
            saved += plain.stats.steps - drafted.stats.steps
    assert saved > 0


def test_scores_and_logits_of_every_step_are_transformers(checkpoints):
    reference, model = checkpoints["v1.1"]
    source = random_source(random.Random(1))
    arguments = dict(num_beams=3, max_new_tokens=9, repetition_penalty=1.2, output_scores=True, output_logits=True)
    out = model.generate([source], **arguments)
    with torch.no_grad():
        wanted = reference.generate(torch.tensor([source]), return_dict_in_generate=True, **arguments)
    for name in ("scores", "logits"):
        found = torch.from_numpy(getattr(out, name)[0])
        for step, theirs_ in enumerate(getattr(wanted, name)):
            assert torch.allclose(found[step], theirs_, atol=1e-4)


def test_sampled_beams_follow_sampling_without_replacement(checkpoints):
    """The first step of two beams samples 4 continuations of the start: compare how often each token is among the best 2."""
    reference, model = checkpoints["v1.1"]
    source, trials = [5, 9, 1], 3000
    out = model.generate([source] * trials, num_beams=2, do_sample=True, temperature=0.7, top_k=6, max_new_tokens=1, seed=2,
                         batch_size=64, num_return_sequences=1, eos_token_id=[1])
    with torch.no_grad():
        logits = reference(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([[0]])).logits[0, 0].double()
    values = logits.log_softmax(-1) / 0.7
    tokens = values.topk(6).indices
    kept = values[tokens].softmax(-1)
    # the best of 4 samples without replacement from 6: token j is the best unless a better one is among the 4
    torch.manual_seed(0)
    samples = torch.multinomial(kept.expand(200_000, -1), 4)
    best = samples.min(1).values  # tokens are sorted, the likeliest first
    expected = torch.bincount(best, minlength=6).double() / len(best)
    counts = torch.zeros(6)
    for (token,) in out.token_ids:
        counts[(tokens == token).nonzero()[0, 0]] += 1
    seen = expected > 0.002
    statistic = float(((counts[seen] - trials * expected[seen]) ** 2 / (trials * expected[seen])).sum())
    freedom = int(seen.sum()) - 1
    assert statistic < freedom + 5 * (2 * max(freedom, 1)) ** 0.5, (counts, trials * expected)


def test_the_source_is_kept_once(checkpoints):
    model = foredraft.from_transformers(checkpoints["deep"][0], drafter="lookup")
    model.generate([random_source(random.Random(2))] * 4, num_beams=4, max_new_tokens=20, batch_size=2)
    pool = model.target.cache.pool
    assert pool.free == pool.pages and pool.most_used <= 2


def test_a_step_copies_less_than_a_tenth_of_the_caches(monkeypatch):
    from foredraft.engine.runtime.continuous_batches import ContinuousBatches

    opened = []
    real = ContinuousBatches.__init__

    def recorded(self, *arguments, **named):
        real(self, *arguments, **named)
        opened.append(self)

    monkeypatch.setattr(ContinuousBatches, "__init__", recorded)
    model = foredraft.load(drafter=None)
    texts = [path.read_text() for path in sorted((embedded.TARGET.parent / "texts").glob("*.txt"))[:3]]
    model.generate(texts, num_beams=4, max_new_tokens=40, eos_token_id=[], batch_size=3)
    beams = opened[0].beams
    assert beams.steps == 3 * 40
    # 20 tokens is the mean length
    assert 0 < beams.copied_bytes < beams.steps * 4 * model.target.cache.sequence_bytes(20) / 10


def test_a_cancelled_search_leaves_room_and_its_neighbours_alone(checkpoints):
    _, model = checkpoints["v1.0"]
    draw = random.Random(7)
    sources = [random_source(draw) for _ in range(8)]
    plain = model.generate(sources, num_beams=3, max_new_tokens=25, min_new_tokens=20)
    results = {}
    with model.stream([foredraft.Request(source, id=i) for i, source in enumerate(sources)], num_beams=3, batch_size=2,
                      max_new_tokens=25, min_new_tokens=20) as stream:
        for result in stream:
            results[result.id] = result
            if result.id == 0:
                stream.cancel(2)
                stream.cancel(7)
    assert results[7].finish_reason == "cancelled"
    for i, result in results.items():
        if result.finish_reason != "cancelled":
            assert result.token_ids == plain.token_ids[i]
    assert model.target.cache.pool.free == model.target.cache.pool.pages


def test_stop_rules_and_functions_work_with_beams(checkpoints):
    reference, model = checkpoints["v1.1"]
    source = random_source(random.Random(3))

    def longer(input_ids, scores):
        return torch.full((len(input_ids),), input_ids.shape[1] >= 6, dtype=torch.bool)

    def fails(input_ids, scores):
        raise RuntimeError("no")

    arguments = dict(num_beams=3, max_new_tokens=20, num_return_sequences=2)
    (result,) = model.stream([source], stopping_criteria=[longer], **arguments)
    with torch.no_grad():
        wanted = reference.generate(torch.tensor([source]), stopping_criteria=[longer], **arguments)
    assert [tokens for tokens, _, _ in ours(result)] == wanted[:, 1:].tolist()
    requests = [foredraft.Request(source, id=0, logits_processor=fails), foredraft.Request(source, id=1)]
    results = {result.id: result for result in model.stream(requests, **arguments)}
    assert str(results[0].error) == "0: logits_processor fails failed (RuntimeError: no)"
    assert ours(results[1]) == ours(next(model.stream([source], **arguments)))


class Streamer:
    def put(self, tokens):
        pass

    def end(self):
        pass


def test_bad_arguments_are_one_line(checkpoints):
    _, model = checkpoints["v1.0"]
    for arguments, message in (
            (dict(num_beams=33), "num_beams is 33; give a whole number between 1 and 32"),
            (dict(num_beams=2, num_return_sequences=3), "num_return_sequences is 3, more than num_beams, 2"),
            (dict(num_return_sequences=3), "num_return_sequences is 3 in greedy decoding"),
            (dict(num_beams=2, early_stopping="maybe"), "early_stopping is 'maybe'"),
            (dict(num_beams=2, length_penalty="x"), "length_penalty is 'x'"),
            (dict(num_beams=2, length_penalty=-8), "length_penalty is -8; give a number of at least -7 and at most 7"),
            (dict(num_beams=2, logprobs=1), "logprobs does not go with num_beams"),
            (dict(num_beams=2, verification="block"), "does not go with block verification"),
            (dict(num_beams=2, big_little=(0.5, 2), draft_tokens=3), "does not go with big_little")):
        with pytest.raises(UserError, match=message):
            model.generate([[5, 1]], **arguments)
    with pytest.raises(UserError, match="a streamer takes no beams"):
        model.generate([[5, 1]], num_beams=2, streamer=Streamer())
    (refused,) = model.stream([foredraft.Request([5, 1], num_beams=4)], num_beams=2)
    assert str(refused.error).startswith("num_beams is 4, the stream's is 2; open the stream with the largest num_beams")


def test_a_cuda_device_refuses_what_it_cannot_do(checkpoints):
    model = checkpoints["v1.0"][1].with_drafter(None)
    model.graphs = object()  # a model on a device has captured graphs
    for arguments, names in ((dict(num_beams=2), "num_beams"), (dict(repetition_penalty=1.2, min_new_tokens=3),
                                                               "repetition_penalty, min_new_tokens")):
        with pytest.raises(UserError, match=f"{names}: not supported on a CUDA device; leave it out"):
            model.generate([[5, 1]], **arguments)


def test_all_beams_go_on_where_end_tokens_are_the_best_candidates():
    """Each end token takes a candidate: there are enough for all beams besides."""
    job = Job(0, None, torch.tensor([5, 1]), SamplingParams(max_new_tokens=4, num_beams=2), 0, 0, [])
    search = BeamSearch(job, [0, 1], 0, np.array([1, 2]), 6)
    logits = np.tile(np.array([0, 9, 8, 7, 6, 5], np.float32), (2, 1, 1))
    search.advance(logits, 0)
    assert search.tokens[:, 1].tolist() == [3, 4] and (search.scores > FORBIDDEN).all()
