"""Lookup and n-gram drafts on a device equal the CPU's, on random tokens and on real texts."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from doubles import Copier, make_state

from foredraft import embedded
from foredraft.engine.drafters.cuda.lookup_cuda import LookupDrafterCuda, NgramDrafterCuda, hashed
from foredraft.engine.drafters.ngram import NgramDrafter
from foredraft.engine.drafters.registry import make_drafter
from foredraft.engine.models import device_memory
from foredraft.engine.params import MAX_DRAFT_TOKENS
from foredraft.engine.state import DecodeState, Draft
from foredraft.errors import UserError
from foredraft.kernels.core.backend_triton import can_launch, is_interpreted
from foredraft.kernels.core.triton_compile import costs
from foredraft.kernels.drafting import prompt_lookup_triton as lookup
from foredraft.ngram_native.count import count
from foredraft.ngram_native.prompt_lookup.hash_chains import WINDOW
from foredraft.ngram_native.smooth import fit
from foredraft.ngram_native.table import Table

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not can_launch(), reason="needs triton, with its interpreter or a GPU")]
DEVICE = "cpu" if is_interpreted() else "cuda"
END = 1


def twins(B: int, capacity: int, K: int | list[int], fill) -> tuple[DecodeState, DecodeState]:
    """One state on the host and one on the device; fill(state) writes both."""
    states = make_state(B, capacity, K, 4), make_state(B, capacity, K, 4, backend="triton", device=DEVICE)
    for state in states:
        fill(state)
    return states


def same_drafts(host, device, states) -> Draft:
    ours, theirs = device.draft(states[1]), host.draft(states[0])
    assert torch.equal(ours.tokens.cpu(), theirs.tokens) and torch.equal(ours.lengths.cpu(), theirs.lengths)
    drafted = torch.arange(theirs.tokens.shape[1]) < theirs.lengths[:, None]
    assert torch.equal(ours.proposer.cpu()[drafted], theirs.proposer[drafted])
    assert not ours.dense.any() and ours.logits is None
    return theirs


@pytest.mark.first(1)
@pytest.mark.parametrize(("matches", "alphabet", "order"), [
    ((1, 1), 5, 0), ((1, 4), 5, 0), ((3, 9), 2, 0), ((1, 4), 4, 3)])
def test_lookup_on_random_tokens(matches, alphabet, order, monkeypatch):
    """Blocks are shorter than the texts; token 0 occurs; sources have an end token or not, and one is empty. Most texts
    continue as drafted, so that confidences change; with a table of that order, both propose."""
    monkeypatch.setattr(lookup, "BLOCK", 16)
    draw = np.random.default_rng(alphabet)
    tokens = np.array([0, *range(2, 1 + alphabet)])
    table = fitted(order) if order else None
    host, device, B = Copier(*matches, table=table), LookupDrafterCuda(DEVICE, *matches, table=table), 5
    found = np.zeros(3, np.int64)
    for new_tokens in (7, 12):
        sources = [torch.from_numpy(tokens[draw.integers(0, alphabet, size)]) for size in (0, 1, 9, 30, 40)]
        sources[3:] = [torch.cat((source, torch.tensor([END]))) for source in sources[3:]]
        for drafter in (host, device):
            drafter.admit(range(B), sources, [])
        states = twins(B, new_tokens, [6, 6, 6, 3, 6], lambda state: None)
        while not states[0].finished.all():
            draft = same_drafts(host, device, states)
            for sequence in (~states[0].finished).nonzero()[:, 0].tolist():
                length, count = int(states[0].lengths[sequence]), int(draft.lengths[sequence])
                kept = int(draw.integers(0, count + 1)) if draw.random() < 0.4 else count
                new = [*draft.tokens[sequence, :kept].tolist(), int(tokens[draw.integers(0, alphabet)])]
                new = new[: new_tokens + 1 - length]
                for state in states:
                    state.tokens[sequence, length : length + len(new)] = torch.tensor(new)
                    state.lengths[sequence] += len(new)
                    state.finished[sequence] = length + len(new) > new_tokens
                found += np.bincount(draft.proposer[sequence, :count].tolist(), minlength=3)
        for sequence in range(B):
            confidence = device.tested[sequence, :, 1] / device.tested[sequence, :, 0]
            np.testing.assert_array_equal(confidence.cpu(), host.rows[sequence].confidence)
        for drafter in (host, device):
            drafter.release(range(3))
    assert found[1] > 8 and (found[2] > 2) == bool(order)


def test_counts_are_halved_as_on_the_cpu():
    host, device = Copier(), LookupDrafterCuda(DEVICE)
    for drafter in (host, device):
        drafter.admit([0], [torch.arange(5, 40)], [])
    host.rows[0].tested[:] = [1999.0, 1500.0]
    device.tested[:] = torch.tensor([1999.0, 1500.0], dtype=torch.float64)
    states = twins(1, 30, 6, lambda state: None)
    for length in (1, 7):
        for state in states:
            state.tokens[0, 1 : length] = torch.arange(5, 4 + length)
            state.lengths.fill_(length)
        same_drafts(host, device, states)
    np.testing.assert_array_equal(device.tested[0].cpu(), host.rows[0].tested[:-1])
    assert float(device.tested[0].min()) < 1100


def test_old_output_leaves_the_window():
    def fill(state):
        state.tokens[:, : WINDOW + 60] = torch.arange(10, WINDOW + 70)
        state.tokens[0, 1:3], state.tokens[1, 61:63] = torch.tensor([5, 6]), torch.tensor([5, 6])
        state.lengths.fill_(WINDOW + 20)
        state.tokens[:, WINDOW + 19] = 5

    host, device = Copier(), LookupDrafterCuda(DEVICE)
    for drafter in (host, device):
        drafter.admit([0, 1], [torch.zeros(0, dtype=torch.int64)] * 2, [])
    assert same_drafts(host, device, twins(2, WINDOW + 60, 3, fill)).lengths.tolist() == [0, 3]


def test_a_state_keeps_its_draft():
    for device in (LookupDrafterCuda(DEVICE), NgramDrafterCuda(fitted(2), DEVICE)):
        device.admit([0], [torch.arange(2, 9)], [])
        state = twins(1, 9, 2, lambda state: None)[1]
        assert device.draft(state) is device.draft(state)


def fitted(order: int) -> Table:
    draw = np.random.default_rng(order)
    sequences = [[0, *np.minimum(draw.geometric(0.2, 12) + 1, 29), END] for _ in range(60)]
    return fit(count(np.concatenate(sequences), np.cumsum([0, *map(len, sequences)]), order, 30))


@pytest.mark.first(2)
@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("least", [0.0, 0.1])
def test_ngram_drafts_on_random_tokens(order, least):
    draw = np.random.default_rng(order)
    tokens = torch.from_numpy(np.minimum(draw.geometric(0.2, (12, 10)) + 1, 29))
    tokens[:, 0] = 0
    lengths = torch.from_numpy(draw.integers(1, 9, 12))

    def fill(state):
        state.tokens[:, :10] = tokens
        state.lengths.copy_(lengths)
        state.finished[3] = True

    table = fitted(order)
    states = twins(12, 12, [7] * 9 + [2, 0, 1], fill)
    assert same_drafts(NgramDrafter(table, least), NgramDrafterCuda(table, DEVICE, least), states).lengths.sum() > 8


@pytest.mark.full
def test_real_texts():
    """The embedded table and tokenizer: a text's first half as source, its second as output."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(embedded.TARGET / "tokenizer.json"))
    texts = [tokenizer.encode(file.read_text()).ids for file in sorted((embedded.TARGET.parent / "texts").glob("*.txt"))[:4]]
    sources = [torch.tensor([*tokens[: len(tokens) // 2], END]) for tokens in texts]
    table = Table.open(embedded.NGRAM)
    pairs = [(NgramDrafter(table), NgramDrafterCuda(table, DEVICE)), (Copier(), LookupDrafterCuda(DEVICE)),
             (Copier(table=table), LookupDrafterCuda(DEVICE, table=table))]
    for drafter in (*pairs[1], *pairs[2]):
        drafter.admit(range(4), sources, [])
    drafted = [0, 0, 0]
    for length in (1, 2, 10, 18, 34, 50):
        def fill(state, length=length):
            for sequence, tokens in enumerate(texts):
                state.tokens[sequence, 1:length] = torch.tensor(tokens[len(tokens) // 2 :][: length - 1])
            state.lengths.fill_(length)

        states = twins(4, 80, 8, fill)
        for kind, pair in enumerate(pairs):
            drafted[kind] += int(same_drafts(*pair, states).lengths.sum())
    assert min(drafted) > 15


@pytest.mark.parametrize("parents", [None, [0, 0, 2]])
def test_inputs_and_allowed_lengths_equal_the_cpus(parents):
    def fill(state):
        state.tokens[:, :9] = torch.arange(45).view(5, 9)
        state.lengths.copy_(torch.tensor([1, 4, 8, 9, 3]))
        state.finished[1] = True

    answers = []
    for state in twins(5, 9, [3, 3, 3, 3, 1], fill):
        draft = Draft.empty(5, 3, state.tokens.device)
        draft.tokens.copy_(torch.arange(50, 65).view(5, 3))
        draft.lengths.copy_(state.allowed())
        draft.parents = None if parents is None else torch.tensor(parents, device=draft.tokens.device).repeat(5, 1)
        answers.append([None if item is None else item.tolist() for item in (draft.lengths, *state.inputs(draft))])
    assert answers[0] == answers[1] and answers[0][0] == [3, 0, 1, 0, 1]


def test_a_history_is_refused_in_a_line():
    with pytest.raises(UserError, match="history.ngram' runs on the CPU only .* device 'cuda' give .*lookup") as caught:
        make_drafter("lookup+history+ngram", None, None, None, "cuda")
    assert "\n" not in str(caught.value)


def test_bytes_of_sources_are_counted_and_refused_before_allocation(monkeypatch):
    copier = LookupDrafterCuda(DEVICE)
    copier.reserve(3, 64)
    held = copier.source, copier.source_lengths, copier.last, copier.tested
    taken, generation = sum(tensor.nbytes for tensor in held), copier.generation
    monkeypatch.setattr(device_memory, "free_bytes", lambda device: taken - 1)
    with pytest.raises(UserError, match="the drafter's copies of 5 sources of 64 tokens need .* lower batch_size"):
        copier.reserve(5, 64)
    assert copier.generation == generation and copier.source is held[0]
    with pytest.raises(UserError):
        LookupDrafterCuda(DEVICE).reserve(3, 64)
    monkeypatch.setattr(device_memory, "free_bytes", lambda device: taken)
    LookupDrafterCuda(DEVICE).reserve(3, 64)


def test_a_table_that_does_not_fit_is_refused_before_it_is_copied(monkeypatch):
    table = fitted(3)
    taken = sum(array.nbytes for array in hashed(table, DEVICE) if isinstance(array, torch.Tensor))
    monkeypatch.setattr(device_memory, "free_bytes", lambda device: taken)
    hashed(table, DEVICE)
    monkeypatch.setattr(device_memory, "free_bytes", lambda device: taken - 1)
    monkeypatch.setattr(torch, "from_numpy", lambda array: pytest.fail("memory was allocated"))
    with pytest.raises(UserError, match="the n-gram table's contexts need .* smaller table"):
        hashed(table, DEVICE)


def at_real_sizes(K=8):
    state = make_state(8, 128, K, 4, backend="triton")
    table = Table.open(embedded.NGRAM)
    for copier in (LookupDrafterCuda("cpu"), LookupDrafterCuda("cpu", table=table)):
        copier.reserve(8, 1024)
        draft = copier.draft(state)
    NgramDrafterCuda(table, "cpu").draft(state)
    state.allowed()
    state.inputs(draft)


longest = partial(at_real_sizes, MAX_DRAFT_TOKENS)


@pytest.mark.full
@pytest.mark.parametrize("drafts", ["at_real_sizes", "longest"])
def test_compiles_for_three_devices(drafts):
    found = costs(f"{__file__}:{drafts}")
    assert [cost.kernel for cost in found[::3]] == ["_prompt_lookup_kernel"] * 2 + [
        "_ngram_lookup_kernel", "_allowed_kernel", "_step_inputs_kernel"]
    assert all(cost.registers <= 128 and cost.spills <= 32 and cost.shared < 8_192 for cost in found), found
