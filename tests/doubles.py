"""Stand-ins for targets and drafters, small enough to enumerate."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import numba
import numpy as np
import torch

from foredraft.engine.drafters.registry import PROPOSERS
from foredraft.engine.loop import decode
from foredraft.engine.protocols import Drafter
from foredraft.engine.sampling.draft_sampling import dense_draft, sample_into
from foredraft.engine.state import DecodeState, Draft
from foredraft.kernels.drafting.tree_children import children_loop
from foredraft.kernels.drafting.vocabulary_head import VocabularyHead
from foredraft.kernels.sampling.top_k_top_p import warp_reference
from foredraft.ngram_native.prompt_lookup.source_index import PromptLookupIndex
from foredraft.ngram_native.stopping import COST

# of tiny trained drafters, by kind (engine/drafters/trained.py)
SIZES = {
    "lstm": dict(hidden_size=24, num_layers=2, d_kv=12, d_ff=20),
    "cnn": dict(hidden_size=20, dilations=(1, 3), d_kv=12, d_ff=20),
    "t5small": dict(num_layers=1, num_decoder_layers=1),
    "t5shallow": dict(layers=[2, 0]),
}


class TableTarget:
    """p(next | last token, position) from a table [positions, V, V] of logits; hidden IS the logits.

    Position-dependent, so that logits of the wrong query position show.
    """

    start_token = 0
    device = torch.device("cpu")

    def __init__(self, table: torch.Tensor, end_token: int = -1):
        self.table, self.end_token = table, end_token

    def admit(self, rows, sources):
        return [torch.zeros(1, 1) for _ in rows]

    def release(self, rows):
        pass

    def decode(self, tokens, positions, parents=None):
        place = positions.clamp(min=0, max=self.table.shape[0] - 1)
        return torch.where(positions[..., None] >= 0, self.table[place, tokens], torch.nan)

    def logits(self, hidden):
        return hidden

    def choose(self, hidden):
        return hidden.nan_to_num(nan=-1e9).argmax(-1)

    def keep(self, path):
        pass


class ScriptedDrafter(Drafter):
    """Point masses that follow `truth[sequence]` (after the start token), wrong wherever `wrong(sequence, position)` says.

    lengths(sequence, step) tokens are proposed; so acceptances and rejections are forced where a test wants them.
    """

    name = "scripted"

    def __init__(self, truth, wrong=lambda row, position: False, lengths=lambda row, round_: 10**9, vocabulary=100):
        self.truth, self.wrong, self.lengths, self.vocabulary = truth, wrong, lengths, vocabulary
        self.round = 0

    def admit(self, rows, sources, encoded):
        pass

    def release(self, rows):
        pass

    def draft(self, state: DecodeState, budget=None) -> Draft:
        draft = Draft.empty(state.batch_size, state.max_draft, state.tokens.device)
        for row, room in enumerate(state.allowed(budget).tolist()):
            length = int(state.lengths[row])
            ids = self.truth[row][length - 1 : length - 1 + min(room, self.lengths(row, self.round))]
            for i, token in enumerate(ids):
                draft.tokens[row, i] = (token + 1) % self.vocabulary if self.wrong(row, length + i) else token
            draft.lengths[row] = len(ids)
            draft.proposer[row] = 1
        self.round += 1
        return draft


class TableDrafter(Drafter):
    """Dense drafts from a table [positions, V, V] of logits, sampled with the production random stream."""

    name = "table"

    def __init__(self, table: torch.Tensor):
        self.table = table

    def admit(self, rows, sources, encoded):
        pass

    def release(self, rows):
        pass

    def draft(self, state: DecodeState, budget=None) -> Draft:
        draft = dense_draft(state, self.table.shape[-1])
        last = state.tokens.gather(1, state.lengths[:, None] - 1)[:, 0]
        for i in range(state.max_draft):
            place = (state.lengths - 1 + i).clamp(max=self.table.shape[0] - 1)
            last = sample_into(draft, i, self.table[place, last], state)
        draft.lengths = state.allowed(budget).clone()
        return draft


@functools.cache
def tree_loop(children):
    """A compiled loop that drafts the trees of a TreeTableDrafter, with `children` of kernels/drafting/tree_children.py."""

    @numba.njit
    def loop(table, tokens, lengths, allowed, ids, tree, temperature, top_k, seeds, drafted, parents, counts, logits, lse):
        N = tree.parents.shape[0]
        for b in range(tokens.shape[0]):
            row_of, depths = np.full(N + 1, -1), np.append(np.zeros(1, np.int64), tree.depths)
            row_of[0] = counts[b] = 0
            most = min(allowed[b], N)
            for level in range(N):
                for node in range(N + 1):
                    asked = (tree.parents[:most] == node).sum()
                    if row_of[node] < 0 or depths[node] != level or asked == 0:
                        continue
                    place, row, first = min(lengths[b] - 1 + level, table.shape[0] - 1), row_of[node], counts[b]
                    last = tokens[b, lengths[b] - 1] if row == 0 else drafted[b, row - 1]
                    found = children(table[place, last].copy(), 0, ids, temperature[b], top_k[b], np.float32(1), seeds[b],
                                     lengths[b], first, asked, tree.replaced, drafted[b], logits[b], lse[b])
                    for child in range(most):
                        if tree.parents[child] == node and counts[b] < first + found:
                            parents[b, counts[b]] = row
                            counts[b] += 1
                            row_of[child + 1] = counts[b]

    return loop


class TreeTableDrafter(Drafter):
    """Sampled trees from a table [positions, V, V] of logits, with the production random stream."""

    name = "table"

    def __init__(self, table: torch.Tensor, tree, children=children_loop):
        V = table.shape[-1]
        self.table, self.tree, self.loop = table.numpy(), tree, tree_loop(children)
        blank = np.zeros((1, 1, 16), np.float32)
        self.ids = VocabularyHead(np.arange(V), blank, np.zeros((1, 0), np.int64), blank[None], np.zeros(1, np.int64),
                             np.zeros((1, 0), np.int64))

    def draft(self, state: DecodeState, budget=None) -> Draft:
        B, K, V = state.batch_size, state.max_draft, self.table.shape[-1]
        draft = Draft.empty(B, K)
        draft.logits, draft.lse = torch.full((B, K, V), torch.nan), torch.zeros(B, K, dtype=torch.float64)
        draft.dense, draft.parents = state.temperature > 0, torch.zeros_like(draft.tokens)
        allowed = state.allowed(budget).numpy()
        self.loop(self.table, state.tokens.numpy(), state.lengths.numpy(), allowed, self.ids, self.tree,
                  state.temperature.numpy(), state.top_k.numpy(), state.seeds.numpy(), draft.tokens.numpy(),
                  draft.parents.numpy(), draft.lengths.numpy(), draft.logits.numpy(), draft.lse.numpy())
        return draft


def make_state(rows: int, new_tokens: int | list[int], draft_tokens: int | list[int], width: int, *, temperature=0.0,
               top_k=0, top_p=1.0, seeds=None, end_token=1, backend=None, device="cpu") -> DecodeState:
    """A fresh state; scalars are accepted for every sequence. backend "triton" on the CPU is Triton's interpreter."""

    def column(value, dtype):
        return torch.as_tensor(value, dtype=dtype, device=device).expand(rows).clone()

    state = DecodeState(
        limits=column(new_tokens, torch.int64) + 1, draft_tokens=column(draft_tokens, torch.int64),
        temperature=column(temperature, torch.float32), top_k=column(top_k, torch.int64),
        top_p=column(top_p, torch.float32),
        seeds=torch.arange(rows, device=device) if seeds is None else column(list(seeds), torch.int64),
        start_token=0, end_token=end_token, width=width)
    state.backend = backend or state.backend
    return state


def admit(target, drafter, state, sources) -> list[torch.Tensor]:
    """A source for every sequence of the state; the encoder's outputs."""
    target.reserve(state.batch_size, state.capacity, state.max_draft, max(len(source) for source in sources))
    encoded = target.admit(range(state.batch_size), sources)
    drafter.admit(range(state.batch_size), sources, encoded)
    return encoded


@torch.inference_mode()
def decoded(target, drafter, state, sources) -> list[list[int]]:
    """The tokens of every sequence, without the start token."""
    admit(target, drafter, state, sources)
    decode(state, target, drafter)
    return [state.tokens[row, 1 : int(state.lengths[row])].tolist() for row in range(state.batch_size)]


def chi_square(counts: torch.Tensor, probabilities: torch.Tensor) -> tuple[float, int]:
    """The statistic of counts against probabilities, and its degrees of freedom."""
    expected = counts.sum() * probabilities
    return float(((counts - expected) ** 2 / expected).sum()), len(counts) - 1


def second_id_chi_square(target, counts: torch.Tensor, *, temperature: float, top_k: int = 0,
                         top_p: float = 1.0) -> tuple[float, int]:
    """Second sampled tokens of a source against their distribution by forward passes, the first token summed out."""
    V = len(counts)

    def exact(tokens, positions):
        logits = target.logits(target.decode(tokens, positions))[:, -1].numpy()
        weights = torch.zeros(len(logits), V)
        for row, out in zip(logits, weights.numpy(), strict=True):
            out /= warp_reference(row, temperature, top_k, top_p, out)
        return weights.double()

    first = exact(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64))[0]
    pairs = torch.stack((torch.zeros(V, dtype=torch.int64), torch.arange(V)), 1)
    second = first @ exact(pairs, torch.tensor([[0, 1]]).repeat(V, 1))
    assert counts[second == 0].sum() == 0
    # tokens too rare for the statistic are one
    common = second * counts.sum() >= 5
    pooled, expected, rest = counts[common], second[common], second[~common].sum()
    if rest > 0:
        pooled, expected = torch.cat((pooled, counts[~common].sum()[None])), torch.cat((expected, rest[None]))
    assert len(pooled) > 5
    return chi_square(pooled, expected / expected.sum())


def joint_chi_square(drafter: str, trials: int, V: int = 16, rows: int = 4_000,
                     backend: str | None = None, block: bool = False, device: str = "cpu") -> tuple[float, int]:
    """The first two sampled tokens against their exact joint distribution; K = 2, distributions that depend on the position.

    drafter "adversarial" drafts from the negated logits, "close" from slightly disturbed ones. block: verified as blocks.
    """
    generator = torch.Generator().manual_seed(7)
    table = torch.randn(4, V, V, generator=generator)
    q = -table if drafter == "adversarial" else table + 0.5 * torch.randn(4, V, V, generator=generator)
    counts = torch.zeros(V * V, dtype=torch.int64)
    for start in range(0, trials, rows):
        state = make_state(rows, 3, 2, V, temperature=1.0, seeds=range(start, start + rows), end_token=-1, backend=backend,
                           device=device)
        state.block = block
        decode(state, TableTarget(table.to(device)), TableDrafter(q.to(device)))
        counts += torch.bincount(state.tokens[:, 1] * V + state.tokens[:, 2], minlength=V * V).cpu()
    first = torch.softmax(table[0, 0].double(), -1)
    return chi_square(counts, (first[:, None] * torch.softmax(table[1].double(), -1)).reshape(-1))


class Copier(Drafter):
    """The CPU's lookup with an index, and so with confidences, for each sequence; finished sequences learn nothing.

    Outputs begin at the source's first token, and nothing is copied from behind a word, as on a device.
    """

    name = "lookup"

    def __init__(self, min_match: int = 1, max_match: int = 4, table=None, cost: float = COST):
        self.options, self.table, self.cost = (min_match, max_match), table, cost
        self.rows: dict[int, PromptLookupIndex] = {}

    def admit(self, rows, sources, encoded):
        for row, source in zip(rows, sources, strict=True):
            self.rows.setdefault(row, PromptLookupIndex(*self.options)).admit(0, source.numpy())

    def release(self, rows):
        for row in rows:
            self.rows[row].release(0)

    def draft(self, state: DecodeState, budget=None) -> Draft:
        draft, allowed = Draft.empty(state.batch_size, state.max_draft), state.allowed(budget)
        draft.proposer.fill_(PROPOSERS.index("lookup"))
        for row in (~state.finished).nonzero()[:, 0].tolist():
            one = slice(row, row + 1)
            self.rows[row].starts[1:] = 0
            self.rows[row].propose(
                state.tokens[one].numpy(), state.lengths[one].numpy(), allowed[one].numpy(), state.end_token,
                draft.tokens[one].numpy(), draft.lengths[one].numpy(), draft.proposer[one].numpy(), self.cost, self.table)
        return draft


class FakeCapture:
    """Captures without running. A replay is queued, and runs when someone waits for a mark behind it, as on CUDA."""

    def __init__(self):
        self.captured, self.replayed, self.queue = 0, 0, []

    def __call__(self, run):
        self.captured += 1
        return SimpleNamespace(replay=lambda: self.queue.append(run))

    def mark(self):
        end = self.replayed + len(self.queue)

        def synchronize():
            while self.replayed < end:
                self.replayed += 1
                self.queue.pop(0)()

        return SimpleNamespace(synchronize=synchronize)
