"""The verification in a CUDA graph, beside the torch operations of transformers and vLLM for the same result.

Inputs rotate through more memory than the second-level cache holds. All three write the accepted tokens and one more on the
device, without the host. The torch versions sample by an exponential race (argmax of p / e), as vLLM does, because
torch.multinomial reads back to the host. The project's kernel also commits into the state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from foredraft.bench.gpu.sizes import Sizes, captured, seconds
from foredraft.bench.harness.measure import spread
from foredraft.kernels.core.backend import HAS_NUMBA
from foredraft.kernels.core.split_softmax_triton import make_scratch
from foredraft.kernels.step.end_tokens import MAX_END_TOKENS
from foredraft.kernels.verify.accept import ACCEPT_SAMPLED
from foredraft.kernels.verify.accept_triton import CommitTensors, accept_sampled_triton

VOCABULARY = 32128
# (B, K), those of the goals first, because a section may run out of time
CASES = [(B, K) for K in (4, 1, 8, 2) for B in (1, 8, 32, 128, 2, 4, 16, 64)]


class Case:
    """Inputs of `copies` calls: B sequences with K drafts each, half of them the target's choice."""

    def __init__(self, device: str, B: int, K: int, V: int, dense: bool, copies: int, C: int = 2048):
        generator = torch.Generator(device).manual_seed(B * 100 + K)

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        # T + 1 is odd: a multiple of 16 would be compiled separately
        R, self.copies, T = K + 1, copies, 2 + 2 * copies * (K + 1)
        self.logits = torch.empty(copies, B, R, V, dtype=torch.bfloat16, device=device).normal_(generator=generator).mul_(3)
        self.dense = torch.full((B,), dense, device=device)
        self.draft_logits = self.draft_lse = None
        chosen = self.logits[:, :, :K].argmax(-1)
        other = torch.randint(V, (copies, B, K), device=device, generator=generator)
        self.drafts = torch.where(torch.rand(copies, B, K, device=device, generator=generator) < 0.5, chosen, other)
        if dense:
            self.draft_logits = torch.empty(copies, B, K, V, device=device).normal_(generator=generator).mul_(2)
            self.draft_logits += self.logits[:, :, :K]
            self.draft_lse = torch.logsumexp(self.draft_logits, -1).double()
        self.lengths = zeros(B) + K
        self.temperature = torch.ones(B, device=device)
        self.seeds = torch.arange(B, device=device)
        self.commit = CommitTensors(
            zeros(B, K, dtype=torch.uint8), torch.ones(B, R, C, dtype=torch.bfloat16, device=device), zeros(B) + T,
            zeros(B, MAX_END_TOKENS) - 1, zeros(B, T + 1), zeros(B, T + 1, dtype=torch.uint8), zeros(B) + 1,
            zeros(B, dtype=torch.bool), zeros(B, C, dtype=torch.float32), zeros(B), zeros(B), zeros(B), zeros(B, K),
            zeros(B, K), zeros(B), zeros(B), zeros(B))
        self.tokens, self.counts, self.path = zeros(B, R), zeros(B), zeros(B, R)
        self.scratch = make_scratch(B, R, V, device)

    def distributions(self, i: int) -> tuple[Tensor | None, Tensor | None]:
        return (None, None) if self.draft_logits is None else (self.draft_logits[i], self.draft_lse[i])

    def ours(self) -> None:
        """Verification and commit, one launch a call; lengths are reset, so that the state has room for all calls."""
        self.commit.lengths.fill_(1)
        for i in range(self.copies):
            accept_sampled_triton(
                self.logits[i], self.drafts[i], self.lengths, None, self.dense, *self.distributions(i), self.temperature,
                None, None,
                self.seeds, self.commit, self.tokens, self.counts, self.path, self.scratch, True)

    def transformers(self) -> None:
        """The operations of _speculative_sampling in transformers' generation/utils.py, for all sequences at once."""
        for i in range(self.copies):
            p = torch.softmax(self.logits[i].float(), -1)
            q = self._distribution(i)
            drafts, K = self.drafts[i][..., None], self.drafts.shape[2]
            ratio = p[:, :K].gather(-1, drafts)[..., 0] / q.gather(-1, drafts)[..., 0]
            is_accepted = torch.rand_like(ratio) <= ratio
            accepted = ((~is_accepted).cumsum(-1) < 1).sum(-1)
            here = accepted[:, None, None].expand(-1, 1, p.shape[2])
            q = torch.cat((q, torch.zeros_like(q[:, :1])), 1)
            rest = (p.gather(1, here) - q.gather(1, here)).clamp(min=0)[:, 0]
            rest = rest / rest.sum(-1, keepdim=True)
            self._write(i, accepted, race(rest))

    def vllm(self) -> None:
        """The operations of vLLM V1's rejection sampler: softmax and recovered token of every position, then the scan."""
        for i in range(self.copies):
            logits, K = self.logits[i].float(), self.drafts.shape[2]
            bonus = race(torch.softmax(logits[:, K], -1))
            p = torch.softmax(logits[:, :K].contiguous(), -1)
            drafts = self.drafts[i][..., None]
            if self.draft_logits is None:
                chance = p.gather(-1, drafts)[..., 0]
                rest = p.scatter(-1, drafts, 0.0)
            else:
                q = self._distribution(i)
                chance = p.gather(-1, drafts)[..., 0] / q.gather(-1, drafts)[..., 0]
                rest = (p - q).clamp(min=0)
            recovered = race(rest)
            is_accepted = torch.rand_like(chance) <= chance
            accepted = ((~is_accepted).cumsum(-1) < 1).sum(-1)
            self._write(i, accepted, torch.cat((recovered, bonus[:, None]), 1).gather(1, accepted[:, None])[:, 0])

    def _distribution(self, i: int) -> Tensor:
        """q [B, K, V]; point masses are materialised, as transformers does for prompt lookup."""
        if self.draft_logits is not None:
            return torch.softmax(self.draft_logits[i], -1)
        B, K = self.drafts.shape[1:]
        q = torch.zeros(B, K, self.logits.shape[-1], device=self.logits.device)
        return q.scatter_(-1, self.drafts[i][..., None], 1.0)

    def _write(self, i: int, accepted: Tensor, following: Tensor) -> None:
        self.tokens[:, :-1].copy_(self.drafts[i])
        self.tokens.scatter_(1, accepted[:, None], following[:, None])
        self.counts.copy_(accepted + 1)


def race(weights: Tensor) -> Tensor:
    """A token sampled from weights [..., V] by an exponential race."""
    return (weights / torch.empty_like(weights).exponential_()).argmax(-1)


def check_verification(device: str, V: int = VOCABULARY) -> Iterator[dict]:
    """The kernel against the CPU's verification, sample by sample, at full size."""
    for dense in (False, True):
        case = Case(device, 6, 4, V, dense, 1, C=8)
        case.ours()
        B, R = case.tokens.shape
        tokens, counts, path = torch.zeros(B, R).long(), torch.zeros(B).long(), torch.zeros(B, R).long()
        distributions = ([one.cpu() for one in case.distributions(0)] if dense else
                         [torch.zeros(0, 0, 0), torch.zeros(0, 0).double()])
        ones = torch.ones(B)
        inputs = [case.logits[0].float().cpu(), case.drafts[0].cpu(), case.lengths.cpu(), torch.arange(R - 1).repeat(B, 1),
                  case.dense.cpu(), *distributions, ones, ones.long() * 0, ones, case.seeds.cpu(), ones.long()]
        outputs = (tokens, counts, path)
        ACCEPT_SAMPLED["numba" if HAS_NUMBA else "reference"](*(item.numpy() for item in (*inputs, *outputs)))
        written = torch.arange(R) < counts[:, None]
        same = torch.equal(case.counts.cpu(), counts) and torch.equal(case.tokens.cpu()[written], tokens[written])
        yield {"check": f"verification of {'dense' if dense else 'point-mass'} drafts equals the CPU's", "passed": same}


def measure_verification(sizes: Sizes, bandwidth: float | None = None, cases: Sequence[tuple[int, int]] = tuple(CASES),
                    V: int = VOCABULARY, megabytes: int = 128) -> Iterator[dict]:
    """Microseconds of a verification by each method, captured.

    `bytes`: the logits once, plus p and q of one position for dense drafts. `over_floor`: the kernel's time over the time of
    these bytes at `bandwidth` GB/s.
    """
    for B, K in cases:
        for dense in (False, True):
            logits = B * (K + 1) * V * 2
            copies = max(2, min(-(-megabytes * 10**6 // (logits * (1 + 2 * dense))), 512))
            case = Case(sizes.device, B, K, V, dense, copies)
            row = {"batch": B, "draft_tokens": K, "drafts": "dense" if dense else "point masses", "copies": copies,
                   "bytes": logits + dense * B * V * 6}
            for name in ("ours", "transformers", "vllm"):
                run: Callable[[], None] = getattr(case, name)
                row[f"{name}_us"] = spread(seconds(sizes, captured(sizes, run), 1))["median"] / copies * 1e6
            if bandwidth:
                row["over_floor"] = row["ours_us"] / (row["bytes"] / bandwidth / 1e3)
            yield row
            del case
            if sizes.device != "cpu":
                torch.cuda.empty_cache()
