"""Every logits processor against transformers: greedy tokens, and the distribution of sampled ones, also with drafts."""

import random

import pytest
import torch
from doubles import chi_square
from transformers import GenerationConfig, LogitsProcessorList, T5Config, T5ForConditionalGeneration

import foredraft
from foredraft import embedded
from foredraft.engine.sampling.logits_pipeline import LogitsPipeline, make_processors
from foredraft.engine.sampling.processor import Context
from foredraft.errors import UserError

ASSETS = embedded.TARGET.parent
NEW = 24
SOURCES = [[5, 9, 33, 5, 9, 40, 5, 9, 1], [7, 8, 9, 1], [50, 50, 12, 50, 50, 12, 1], [3, 1]]
KINDS = {
    "v1.0": dict(feed_forward_proj="relu"),
    "v1.1": dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "deep": dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False, num_layers=3, num_decoder_layers=3),
}


class LikeLate:
    """A caller's processor: it prefers the token after the last one."""

    def __call__(self, input_ids, scores):
        scores = scores.clone()
        scores[:, (int(input_ids[0, -1]) + 1) % scores.shape[1]] += 2.0
        return scores


def odd_or_end(index, input_ids):
    """A prefix_allowed_tokens_fn."""
    return [1, *range(3 + (input_ids.shape[0] + index) % 2, 100, 2)]


ARGUMENTS = {
    "repetition_penalty": 1.4,
    "encoder_repetition_penalty": 1.5,
    "no_repeat_ngram_size": 2,
    "encoder_no_repeat_ngram_size": 2,
    "min_new_tokens": 9,
    "min_length": 7,
    "bad_words_ids": [[5], [9, 33], [40, 5, 9], [1]],
    "suppress_tokens": [5, 9, 17],
    "begin_suppress_tokens": [5, 7, 50, 3],
    "forced_bos_token_id": 8,
    "forced_eos_token_id": 1,
    "sequence_bias": {(5,): -2.0, (9, 33): 3.0, (7, 8, 9): 4.0, (33,): 1.5},
    "exponential_decay_length_penalty": (4, 1.3),
    "remove_invalid_values": True,
    "renormalize_logits": True,
    "max_length": 13,
    "eos_token_id": [1, 17, 60],
    "logits_processor": LogitsProcessorList([LikeLate()]),
    "prefix_allowed_tokens_fn": odd_or_end,
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Random checkpoints of several kinds, whose greedy outputs vary and end at different lengths."""
    found = {}
    for number, (kind, changes) in enumerate(KINDS.items()):
        torch.manual_seed(number)
        sizes = dict(vocab_size=100, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=4)
        config = T5Config(**sizes | dict(decoder_start_token_id=0, initializer_factor=1.5) | changes)
        model = T5ForConditionalGeneration(config).eval()
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(4)
        folder = tmp_path_factory.mktemp("checkpoint") / kind.replace(".", "_")
        model.save_pretrained(folder)
        found[kind] = (model, foredraft.load(folder, drafter="lookup"))
    return found


def theirs(model, source, index=0, **arguments):
    """The new tokens of transformers' generate."""
    arguments = dict(arguments)
    if "max_length" not in arguments:
        arguments["max_new_tokens"] = NEW
    if (function := arguments.get("prefix_allowed_tokens_fn")) is not None:
        arguments["prefix_allowed_tokens_fn"] = lambda _, ids: function(index, ids)
    with torch.no_grad():
        out = model.generate(torch.tensor([source]), do_sample=False, num_beams=1, **arguments)
    return out[0, 1:].tolist()


def ours(model, **arguments):
    if "max_length" not in arguments:
        arguments["max_new_tokens"] = NEW
    return model.generate(SOURCES, **arguments).token_ids


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("kind", ["v1.1", *(pytest.param(kind, marks=pytest.mark.full) for kind in ("v1.0", "deep"))])
def test_each_argument_alone_gives_transformers_tokens(checkpoints, kind, name):
    reference, model = checkpoints[kind]
    arguments = {name: ARGUMENTS[name]}
    wanted = [theirs(reference, source, index, **arguments) for index, source in enumerate(SOURCES)]
    for K in (0, 1, 5, 12):
        assert ours(model, draft_tokens=K, **arguments) == wanted


def random_arguments(draw):
    names = draw.sample([name for name in ARGUMENTS if name != "max_length"], draw.randint(2, 6))
    return {name: ARGUMENTS[name] for name in names}


@pytest.mark.full
@pytest.mark.parametrize("part", range(4))
def test_random_combinations_give_transformers_tokens(checkpoints, part):
    draw = random.Random(part)
    for number in range(50):
        reference, model = checkpoints[draw.choice(list(KINDS))]
        arguments = random_arguments(draw)
        wanted = [theirs(reference, source, index, **arguments) for index, source in enumerate(SOURCES)]
        K = (0, 1, 5, 12)[number % 4]
        assert ours(model, draft_tokens=K, batch_size=draw.randint(1, 4), **arguments) == wanted, arguments


def test_a_few_random_combinations_give_transformers_tokens(checkpoints):
    draw = random.Random(99)
    for K in (0, 1, 5, 12):
        reference, model = checkpoints[draw.choice(list(KINDS))]
        arguments = random_arguments(draw)
        wanted = [theirs(reference, source, index, **arguments) for index, source in enumerate(SOURCES)]
        assert ours(model, draft_tokens=K, **arguments) == wanted, arguments


DRAFTERS = ("lookup", "ngram", "lookup+ngram", "lstm", "self:0", "tree:3x2:lookup", "tree:2x2:lstm", "cascade:lookup,lstm",
            "auto")


@pytest.mark.full
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_the_embedded_model_gives_transformers_tokens_with_every_drafter(drafter):
    reference = T5ForConditionalGeneration.from_pretrained(embedded.TARGET, dtype=torch.float32).eval()
    model = foredraft.load(drafter=drafter)
    draw, accepted = random.Random(drafter), 0
    for path in sorted((ASSETS / "texts").glob("*.txt"))[:3]:
        source = model.tokenizer.encode(path.read_text()).ids[:200] + [1]
        words = [model.tokenizer.encode(word).ids[:-1] for word in path.read_text().split()[:40:4]]
        choices = dict(repetition_penalty=1.4, encoder_repetition_penalty=1.3, no_repeat_ngram_size=3, min_new_tokens=30,
                       encoder_no_repeat_ngram_size=6, bad_words_ids=words, suppress_tokens=[5, 6],
                       begin_suppress_tokens=[8], forced_bos_token_id=3, sequence_bias=dict([(tuple(words[0]), 3.0)]))
        for names in ([], draw.sample(list(choices), 2), draw.sample(list(choices), 4)):
            arguments = {name: choices[name] for name in names}
            out = model.generate([source], max_new_tokens=40, **arguments)
            wanted = reference.generate(torch.tensor([source]), max_new_tokens=40, num_beams=1, **arguments)
            assert out.token_ids[0] == wanted[0, 1:].tolist(), arguments
            accepted += out.stats.accepted
    assert accepted > 0


def test_every_request_of_a_batch_has_its_own_processors(checkpoints):
    _, model = checkpoints["v1.1"]
    settings = [{}, {"repetition_penalty": 1.4}, {"no_repeat_ngram_size": 1}, {"min_new_tokens": 20},
                {"do_sample": True, "min_p": 0.2, "seed": 5}, {"do_sample": True, "seed": 6}]
    requests = [foredraft.Request(source, id=(number, index), max_new_tokens=NEW, **own)
                for number, own in enumerate(settings) for index, source in enumerate(SOURCES)]
    together = {result.id: result.token_ids for result in model.stream(requests, batch_size=5, max_new_tokens=NEW)}
    for request in requests:
        own = request.settings | ({"seed": [request.settings["seed"]]} if "seed" in request.settings else {})
        alone = model.generate([request.input], draft_tokens=0, **own).token_ids[0]
        assert together[request.id] == alone


WARPERS = [dict(temperature=0.7, top_k=12), dict(top_p=0.6), dict(min_p=0.15), dict(typical_p=0.5),
           dict(epsilon_cutoff=0.02), dict(eta_cutoff=0.05), dict(top_h=0.6),
           dict(temperature=1.5, top_k=30, top_p=0.95, min_p=0.02, typical_p=0.9, epsilon_cutoff=0.003, eta_cutoff=0.01,
                top_h=0.95)]


def warped(reference, source, prefix, arguments):
    """transformers' distribution of the next token after `prefix`, by its own processors."""
    with torch.no_grad():
        ids = torch.tensor([[0, *prefix]])
        scores = reference(input_ids=torch.tensor([source]), decoder_input_ids=ids).logits[:, -1].float()
        config = GenerationConfig(do_sample=True, max_length=99, eos_token_id=1, **arguments)
        config._eos_token_tensor = torch.tensor([1])
        processors = reference._get_logits_processor(config, 1, torch.tensor([source]), device="cpu")
        return torch.softmax(processors(ids, scores), -1)[0].double()


@pytest.mark.parametrize("arguments", WARPERS, ids=lambda arguments: "-".join(arguments))
def test_the_processed_scores_are_transformers(checkpoints, arguments):
    reference, model = checkpoints["v1.1"]
    for index, source in enumerate(SOURCES):
        out = model.generate([source], do_sample=True, seed=index, max_new_tokens=5, output_scores=True, draft_tokens=3,
                             eos_token_id=(), **arguments)
        for position, scores in enumerate(out.scores[0]):
            found = torch.softmax(torch.from_numpy(scores).double(), -1)
            wanted = warped(reference, source, out.token_ids[0][:position], arguments)
            assert torch.allclose(found, wanted, atol=2e-5)


class OneDistribution(foredraft.Drafter):
    """Samples every draft from the same distribution, that of the first token without processors."""

    name = "one-distribution"

    def __init__(self, logits):
        self.logits = logits  # [V]

    def admit(self, sequences, sources, encoded):
        pass

    def release(self, sequences):
        pass

    def draft(self, state):
        from foredraft.engine.sampling.draft_sampling import dense_draft, sample_into

        draft = dense_draft(state, 100)
        draft.lengths = state.allowed()
        for position in range(state.max_draft):
            sample_into(draft, position, self.logits.expand(state.batch_size, -1).contiguous(), state)
        return draft


@pytest.mark.parametrize("verification", ["token", pytest.param("block", marks=pytest.mark.full)])
@pytest.mark.parametrize("arguments", [
    dict(repetition_penalty=1.5, temperature=0.6),
    pytest.param(dict(min_p=0.1, no_repeat_ngram_size=1), marks=pytest.mark.full),
    pytest.param(dict(typical_p=0.7, suppress_tokens=[4, 5]), marks=pytest.mark.full)])
def test_two_sampled_tokens_follow_the_processed_distribution(checkpoints, arguments, verification):
    """The joint distribution of the first two tokens over few kinds of tokens, with drafts that know no processor."""
    reference, model = checkpoints["v1.0"]
    source, trials = SOURCES[0], 3000
    first = warped(reference, source, [], arguments)
    groups = first.topk(6).indices.tolist()  # and one group of all other tokens

    def group(token):
        return groups.index(token) if token in groups else len(groups)

    joint = torch.zeros(len(groups) + 1, len(groups) + 1, dtype=torch.float64)
    for token in range(100):
        if first[token] > 1e-9:
            second = warped(reference, source, [token], arguments)
            for following in range(100):
                joint[group(token), group(following)] += first[token] * second[following]
    with torch.no_grad():
        logits = reference(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([[0]])).logits[0, 0]
    drafting = model.with_drafter(OneDistribution(logits))
    counts = torch.zeros_like(joint)
    out = drafting.generate([source] * trials, do_sample=True, seed=1, max_new_tokens=2, draft_tokens=2, batch_size=64,
                            eos_token_id=(), verification=verification, **arguments)
    assert 0 < out.stats.accepted < out.stats.tested
    for a, b in out.token_ids:
        counts[group(a), group(b)] += 1
    expected = joint.flatten() * trials
    kept = expected > 5
    pooled = torch.cat([joint.flatten()[kept], joint.flatten()[~kept].sum()[None]])
    found = torch.cat([counts.flatten()[kept], counts.flatten()[~kept].sum()[None]])
    statistic, freedom = chi_square(found, pooled.clamp(min=1e-12))
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5, (statistic, freedom)


def test_logprobs_are_the_models_with_drafts_on(checkpoints):
    reference, model = checkpoints["v1.1"]
    out = model.generate(SOURCES, max_new_tokens=NEW, logprobs=3, draft_tokens=5, repetition_penalty=1.3)
    assert out.stats.accepted > 0
    for source, tokens, kept in zip(SOURCES, out.token_ids, out.logprobs, strict=True):
        with torch.no_grad():
            out = reference(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([[0, *tokens[:-1]]]))
        wanted = out.logits[0].double().log_softmax(-1)
        assert [one.token for one in kept] == tokens
        for position, one in enumerate(kept):
            assert abs(one.logprob - float(wanted[position, one.token])) < 1e-4
            top = wanted[position].topk(3)
            assert torch.allclose(torch.tensor([value for _, value in one.top]), top.values.float(), atol=1e-4)


def test_scores_and_logits_are_transformers(checkpoints):
    reference, model = checkpoints["v1.0"]
    arguments = dict(max_new_tokens=NEW, no_repeat_ngram_size=2, output_scores=True, output_logits=True)
    out = model.generate(SOURCES, draft_tokens=5, **arguments)
    for index, source in enumerate(SOURCES):
        wanted = reference.generate(torch.tensor([source]), return_dict_in_generate=True, **arguments)
        for name in ("scores", "logits"):
            found = torch.from_numpy(getattr(out, name)[index])
            assert torch.allclose(found, torch.cat(getattr(wanted, name)), atol=1e-4)


def test_a_processor_that_fails_names_its_request_and_leaves_the_others_alone(checkpoints):
    _, model = checkpoints["v1.1"]

    def fails(input_ids, scores):
        if input_ids.shape[1] > 3:
            raise RuntimeError("no more")
        return scores

    requests = [foredraft.Request(source, id=f"r{i}", **({"logits_processor": [fails]} if i == 1 else {}))
                for i, source in enumerate(SOURCES)]
    results = {result.id: result for result in model.stream(requests, max_new_tokens=NEW, batch_size=4)}
    assert results["r1"].finish_reason == "error"
    assert str(results["r1"].error) == "r1: logits_processor fails failed (RuntimeError: no more)"
    plain = model.generate(SOURCES, max_new_tokens=NEW).token_ids
    assert [results[f"r{i}"].token_ids for i in (0, 2, 3)] == [plain[i] for i in (0, 2, 3)]
    with pytest.raises(UserError, match="input 1: logits_processor fails failed"):
        model.generate(SOURCES[:1], logits_processor=fails)
    with pytest.raises(UserError, match=r"input 1: .*returned \(1, 3\), not scores of shape \(1, 100\)"):
        model.generate(SOURCES[:1], logits_processor=lambda ids, scores: scores[:, :3])
    assert model.generate(SOURCES, max_new_tokens=NEW).token_ids == plain


@pytest.mark.parametrize("drafter", ["lookup", "tree:2x2x1:lookup"])
def test_a_callers_function_sees_what_decoding_without_drafts_shows_it(checkpoints, drafter):
    """Greedy: each prefix of the output once. Sampled: no output that has probability 0."""
    _, model = checkpoints["v1.1"]
    model, seen = model.with_drafter(drafter), []

    def looks(input_ids, scores):
        seen.append(input_ids[0].tolist())
        return scores

    out = model.generate(SOURCES[:1], max_new_tokens=NEW, logits_processor=looks, eos_token_id=[1, 17])
    assert out.stats.accepted > 0
    assert seen == [[0, *out.token_ids[0][:n]] for n in range(len(out.token_ids[0]))]

    allowed = [[5, 9, 33, 1], [5, 9, 40, 5, 1], [7, 8, 1], [50, 50, 12, 1]]

    def in_the_trie(index, input_ids):
        written = input_ids[1:].tolist()
        return sorted({one[len(written)] for one in allowed if one[: len(written)] == written and len(one) > len(written)})

    for settings in ({}, {"do_sample": True, "temperature": 4.0, "seed": 3}):
        found = model.generate(SOURCES * 8, prefix_allowed_tokens_fn=in_the_trie, **settings).token_ids
        assert all(tokens in allowed for tokens in found)


def test_a_failure_behind_a_rejected_draft_or_the_end_does_not_count(checkpoints):
    _, model = checkpoints["v1.1"]
    plain = model.generate(SOURCES, max_new_tokens=NEW, do_sample=True, seed=4, temperature=0.5).token_ids

    def never_wrong(index):
        def fails(input_ids, scores):
            if input_ids[0, 1:].tolist() != plain[index][: input_ids.shape[1] - 1]:
                raise RuntimeError("no such output")
            return scores
        return fails

    requests = [foredraft.Request(source, id=i, logits_processor=never_wrong(i)) for i, source in enumerate(SOURCES)]
    seeds = {"do_sample": True, "seed": 4, "temperature": 0.5}
    found = {result.id: result for result in model.stream(requests, max_new_tokens=NEW, **seeds)}
    assert [found[i].token_ids for i in range(len(SOURCES))] == plain
    assert sum(result.stats.accepted for result in found.values()) > 0

    def at_the_sixth(input_ids, scores):
        if input_ids.shape[1] == 6:
            raise RuntimeError("too long")
        return scores

    settings = {"logits_processor": at_the_sixth, "eos_token_id": [], "max_new_tokens": NEW}
    with pytest.raises(UserError, match="too long"):
        model.generate(SOURCES[:1], **settings)
    out = model.generate(SOURCES, stopping_criteria=lambda input_ids, _: input_ids.shape[1] == 6, **settings)
    assert [len(tokens) for tokens in out.token_ids] == [5] * len(SOURCES)


def test_transformers_own_classes_take_the_place_of_arguments(checkpoints):
    from transformers import RepetitionPenaltyLogitsProcessor

    reference, model = checkpoints["v1.1"]

    class Mine(LikeLate):
        pass

    Mine.__name__ = "RepetitionPenaltyLogitsProcessor"
    for given in ([RepetitionPenaltyLogitsProcessor(1.6)], [Mine()],
                  [RepetitionPenaltyLogitsProcessor(1.6), RepetitionPenaltyLogitsProcessor(1.2)]):
        arguments = {"repetition_penalty": 1.3, "logits_processor": LogitsProcessorList(given)}
        wanted = [theirs(reference, source, **arguments) for source in SOURCES]
        assert ours(model, draft_tokens=5, **arguments) == wanted


def test_processors_of_a_tree_see_the_path_of_each_node(checkpoints):
    _, model = checkpoints["v1.1"]
    wanted = model.with_drafter(None).generate(SOURCES, max_new_tokens=NEW, repetition_penalty=1.3, no_repeat_ngram_size=3)
    tree = model.with_drafter("tree:2x2x1:lookup").generate(SOURCES, max_new_tokens=NEW, repetition_penalty=1.3,
                                                           no_repeat_ngram_size=3)
    assert tree.token_ids == wanted.token_ids


def test_a_request_without_processors_costs_nothing_in_a_batch():
    """The pipeline is inactive, so a greedy batch never computes logits."""
    pipeline = LogitsPipeline()
    context = Context(torch.tensor([5, 1]).numpy(), (1,), 9, 100, "numba")
    pipeline.start(0, make_processors(foredraft.SamplingParams(do_sample=True, top_k=3), context), None)
    assert not pipeline.is_active
    pipeline.start(1, make_processors(foredraft.SamplingParams(repetition_penalty=1.2), context), None)
    assert pipeline.is_active
    pipeline.stop(1)
    assert not pipeline.is_active
