"""Correctness on this GPU: kernels against their references at full size, and bf16 decoding bit for bit."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from foredraft.bench.gpu.rounding_bounds import BFLOAT16, attended, rounding, unsigned
from foredraft.bench.gpu.sizes import POSITION, Sizes, can_overlap, fill_caches, random_target, seconds
from foredraft.bench.harness.cases import sample_texts
from foredraft.bench.harness.measure import spread
from foredraft.engine.drafters.neural.lstm import LSTMConfig
from foredraft.engine.load import load
from foredraft.engine.models.spec import ModelConfig
from foredraft.kernels.core.pdl_triton import PDL_LAUNCH
from foredraft.kernels.drafting.causal_conv_triton import CONVOLUTION
from foredraft.kernels.drafting.lstm_cell_triton import CELL, MIX
from foredraft.kernels.drafting.vocabulary_head_triton import (
    VOCABULARY_CHOOSE,
    VOCABULARY_LOGITS,
    CopyScores,
    DeviceVocabulary,
)
from foredraft.kernels.model.cross_attention_triton import FUSED_CROSS_ATTENTION, PAGE, work_size
from foredraft.kernels.model.embed_triton import EMBED, FINAL_NORM
from foredraft.kernels.model.linear_triton import ADD, GATE, PROJECT, QKV
from foredraft.kernels.model.lm_head_triton import FUSED_CHOOSE, FUSED_LOGITS, WIDTH
from foredraft.kernels.model.self_attention_triton import FUSED_SELF_ATTENTION

# bound of a value of size 1 behind gates in float32: the error of a gate is at most that of its sum of thousands of terms
GATED = 2.0**-10


class _Case:
    """Draws arguments on the device and compares a kernel's outputs with its reference's, computed on the CPU."""

    def __init__(self, sizes: Sizes):
        self.device, self.generator = sizes.device, torch.Generator(sizes.device).manual_seed(1)

    def draw(self, *shape: int, scale: float = 1.0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return (torch.randn(shape, device=self.device, generator=self.generator) * scale).to(dtype)

    def empty(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.full(shape, float("nan"), dtype=dtype, device=self.device)

    def compare(self, name: str, kernels: dict, arguments: tuple, outputs: tuple, work: tuple = (), *, terms: int = 0,
                keys: int = 0) -> dict:
        """`worst`: the largest error over its bound (rounding_bounds.py).

        The bound is the rounding of sums of `terms` products; of attention over `keys` keys, where the arguments are
        queries, keys, values and so on; else GATED, or the distance to a bfloat16's neighbour.
        """
        host = [_on_cpu(a) for a in arguments]
        wanted = [output.cpu().clone() for output in outputs]
        magnitudes = [unsigned(want) for want in wanted]
        kernels["triton"](*arguments, *outputs, *work)
        kernels["reference"](*host, *wanted)
        pairs = zip(wanted, magnitudes, strict=True)
        if terms:
            kernels["reference"](*map(unsigned, host), *magnitudes)
            bounds = [rounding(terms, *pair) for pair in pairs]
        elif keys:
            q, k, v, *rest = host
            kernels["reference"](q, k, v.abs(), *rest, *magnitudes)
            bounds = [attended(q, k, keys, *pair) for pair in pairs]
        else:
            bounds = [(BFLOAT16 if want.dtype == torch.bfloat16 else GATED) * (1 + want.float().abs()) for want in wanted]
        found = [output.cpu() for output in outputs]
        # 0 / 0 is no error
        worst = max(float(((a.float() - b.float()).abs() / bound).nan_to_num(0).max())
                    for a, b, bound in zip(found, wanted, bounds, strict=True))
        same_holes = all(torch.equal(a.isnan(), b.isnan()) and torch.equal(a.isinf(), b.isinf())
                         for a, b in zip(found, wanted, strict=True))
        return {"check": name, "worst": worst, "passed": same_holes and worst <= 1}


def _on_cpu(value: object) -> object:
    """Tensors, and named tuples of them, copied to the CPU; other values unchanged."""
    if isinstance(value, tuple):
        return type(value)(*map(_on_cpu, value))
    return value.cpu() if isinstance(value, Tensor) else value


def check_kernels(sizes: Sizes) -> Iterator[dict]:
    """Every kernel of a target's pass at the width of `sizes.checked`; the products in tiles of 16, 32 and 64 rows."""
    c, case = random_target(sizes, sizes.checked, layers=1).config, _Case(sizes)
    for B in (1, 3, 8):
        yield from _check_products(case, c, B)
    yield from _check_others(case, c, sizes.source)


def _six_positions(case: _Case, B: int) -> Tensor:
    """Positions [B, 6]; where there are three requests, one has fewer and one is not decoded."""
    positions = torch.arange(POSITION, POSITION + 6, device=case.device).repeat(B, 1)
    positions[1:2, 3:], positions[2:3] = -1, -1
    return positions


def _check_products(case: _Case, c: ModelConfig, B: int) -> Iterator[dict]:
    """The products of six query positions of B requests."""
    C, H, D, F, V, T = c.d_model, c.num_heads, c.d_kv, c.d_ff, c.vocab_size, POSITION + 9
    positions = _six_positions(case, B)
    M = positions.numel()
    x = case.draw(M, C, dtype=torch.float32)
    squares = torch.zeros(M, -(-C // 16), device=case.device)
    squares[:, 0] = x.square().sum(1)
    y = x.bfloat16()
    yield case.compare(f"qkv, {M} rows", QKV, (y, squares, case.draw(3 * H * D, C, scale=C**-0.5), 1e-6, positions),
                       (case.empty(M, H, D), case.empty(B, H, T, D), case.empty(B, H, T, D)), terms=C)
    yield case.compare(f"project, {M} rows", PROJECT, (y, squares, case.draw(H * D, C, scale=C**-0.5), 1e-6),
                       (case.empty(M, H * D),), terms=C)
    gate = case.draw(2 * F if c.gated else F, C, scale=C**-0.5)
    yield case.compare(f"gate, {M} rows", GATE, (y, squares, gate, 1e-6, c.activation, c.gated), (case.empty(M, F),),
                       terms=C)
    added, sums = x.clone(), case.empty(M, -(-C // 16), dtype=torch.float32)
    ones = torch.ones(C, device=case.device)
    yield case.compare(f"add, {M} rows", ADD, (case.draw(M, F), case.draw(C, F, scale=F**-0.5), ones),
                       (added, case.empty(M, C), sums), terms=F)
    exact = added.double().square().unflatten(1, (-1, 16)).sum(2)
    apart = (sums - exact).abs() / rounding(16, sums, exact)
    yield {"check": f"add, {M} rows: its squares are those of its output", "worst": float(apart.max()),
           "passed": bool((apart <= 1).all())}
    head = case.draw(V, C, scale=C**-0.5)
    logits = case.empty(M, V, dtype=torch.float32)
    yield case.compare(f"logits, {M} rows", FUSED_LOGITS, (y, head), (logits,), terms=C)
    parts = -(-V // WIDTH)
    chosen = torch.zeros(M, dtype=torch.int64, device=case.device)
    arrived = torch.zeros(-(-M // 16), dtype=torch.int32, device=case.device)
    FUSED_CHOOSE["triton"](y, head, chosen, case.empty(M, parts, dtype=torch.float32),
                           torch.zeros(M, parts, dtype=torch.int32, device=case.device), arrived)
    yield {"check": f"the choice is the argmax of the logits, {M} rows",
           "passed": bool((chosen == logits.argmax(1)).all()) and not arrived.any()}


def _check_others(case: _Case, c: ModelConfig, source: int) -> Iterator[dict]:
    """Attention, the embedding and the closing norm, of six query positions of three requests."""
    C, H, D, V, B, R, T = c.d_model, c.num_heads, c.d_kv, c.vocab_size, 3, 6, POSITION + 9
    M, positions = B * R, _six_positions(case, B)
    # references of attention are plain loops: few heads
    few = min(H, 2)
    visible = torch.ones(R, R, dtype=torch.int8, device=case.device).tril().repeat(B, 1, 1)
    q = case.draw(M, few, D)
    yield case.compare("self-attention", FUSED_SELF_ATTENTION, (
        q, case.draw(B, few, T, D, scale=0.3), case.draw(B, few, T, D), positions, visible,
        case.draw(few, T, dtype=torch.float32)), (case.empty(M, few * D),), keys=T)
    pages = -(-source // PAGE)
    table = torch.randperm(B * pages, device=case.device, generator=case.generator).view(B, pages)
    lengths = torch.tensor([source, 1, min(65, source)], device=case.device)
    work = (case.empty(work_size(B, R, few, pages, D), dtype=torch.float32),
            torch.zeros(B * few, dtype=torch.int32, device=case.device))
    yield case.compare("cross-attention", FUSED_CROSS_ATTENTION, (
        q, case.draw(B * pages, few, PAGE, D, scale=0.3), case.draw(B * pages, few, PAGE, D), table, lengths),
        (case.empty(M, few * D),), work, keys=source)
    norm = 0.5 + torch.rand(C, device=case.device, generator=case.generator)
    tokens = torch.randint(V, (B, R), device=case.device, generator=case.generator)
    x, squares = (case.empty(M, n, dtype=torch.float32) for n in (C, -(-C // 16)))
    yield case.compare("embedding", EMBED, (tokens, positions, None, case.draw(V, C), norm), (
        torch.full((B, R, R), -77, dtype=torch.int8, device=case.device), x, case.empty(M, C), squares), terms=16)
    yield case.compare("closing norm", FINAL_NORM, (x, squares, norm, 1e-6, 0.5),
                       (case.empty(M, C, dtype=torch.float32), case.empty(M, C)), terms=C)


def check_drafters(sizes: Sizes) -> Iterator[dict]:
    """Kernels of neural drafters at the width of `sizes.checked` and their default sizes: three requests, one of which is
    not decoded."""
    c, d, case = ModelConfig.from_dict(sizes.geometries[sizes.checked], sizes.checked), LSTMConfig, _Case(sizes)
    C, V, U, F, B, T = c.d_model, c.vocab_size, d.hidden_size, d.d_ff, 3, POSITION + 1
    at = torch.tensor([POSITION, 1, -1], device=case.device)
    tokens = torch.randint(V, (B, T), device=case.device, generator=case.generator)
    embedding, lengths = case.draw(V, C), torch.full_like(at, POSITION - 1)
    cell = case.draw(4 * U, C, scale=C**-0.5), case.draw(4 * U, U, scale=U**-0.5), case.draw(4 * U, dtype=torch.float32)
    # states before the position are given; the state at the position is written
    h, states = case.draw(B, T, U, scale=0.5), case.draw(B, T, U, dtype=torch.float32)
    yield case.compare("recurrent cell", CELL, (tokens[:, 0], at, embedding, *cell), (h, states))
    yield case.compare("mixed inputs", MIX, (
        at.clamp(min=0), h, case.draw(B, F), embedding, tokens, lengths, tokens[:, :2].contiguous(),
        case.draw(F + 1, U, scale=U**-0.5), case.draw(F + 1, F, scale=F**-0.5), case.draw(1, F + 1, C, scale=C**-0.5),
        case.draw(F + 1, dtype=torch.float32), 1.0), (case.empty(B, F), case.empty(B, dtype=torch.float32)), terms=U + F + C)
    below, above = case.draw(B, T, U).float(), case.empty(B, T, U, dtype=torch.float32)
    yield case.compare("convolution", CONVOLUTION, (
        at, below, case.draw(3, 2 * U, U, scale=U**-0.5), case.draw(2 * U, dtype=torch.float32), 4), (above,))
    # tokens of the source are distinct, each at one position
    S, few = min(sizes.source, V // 4), min(1024, V // 2)
    ids = torch.randperm(V, device=case.device, generator=case.generator)
    source, counts = ids[:S].sort().values.repeat(B, 1), torch.full_like(at, S)
    listed = DeviceVocabulary(ids[S // 2 :][:few], source, counts, torch.zeros(B, few, dtype=torch.int8, device=case.device))
    listed.left_out[:, : S - S // 2] = 1
    scores, ones = case.draw(B, S, dtype=torch.float32), torch.ones(B, device=case.device)
    pointed = CopyScores(source, counts, scores, scores.amax(1), ones * S, 3 * ones)
    y, logits = case.draw(B, C, scale=C**-0.5), torch.full((B, V), float("-inf"), device=case.device)
    yield case.compare("listed logits", VOCABULARY_LOGITS, (y, embedding, listed, pointed), (logits,), terms=C + S)
    parts = -(-few // WIDTH) + -(-S // WIDTH)
    chosen = torch.zeros(B, dtype=torch.int64, device=case.device)
    VOCABULARY_CHOOSE["triton"](y, embedding, listed, pointed, chosen, case.empty(B * parts, dtype=torch.float32),
                          torch.zeros(B * parts, dtype=torch.int32, device=case.device), chosen.new_zeros(1).int())
    yield {"check": "the choice is the argmax of the vocabulary's logits",
           "passed": bool((chosen == logits.argmax(1)).all())}


def check_bits(sizes: Sizes, layers: int | None = 4) -> Iterator[dict]:
    """The same bits in bf16 for one token a pass and one request, and for up to 16 in a batch beside longer sources."""
    target = random_target(sizes, sizes.checked, layers)
    R, largest, (short, long) = sizes.draft_tokens + 1, sizes.batches[-1], sizes.together
    most = max(2 * R, 16)
    tokens = torch.randint(3, target.config.vocab_size, (largest, most), device=target.device)

    def run(B: int, reads: int, count: int) -> tuple[Tensor, Tensor]:
        fill_caches(target, largest, long, most)
        # caches are filled for the largest batch in every run; the first sequences are used
        target.buffers["sources"][0] = short
        target.reserve(largest, POSITION + most, most - 1, short if B == 1 else long)
        hidden, chosen = [], []
        for start in range(0, count, reads):
            positions = torch.arange(POSITION + start, POSITION + start + reads, device=target.device).repeat(B, 1)
            out = target.decode(tokens[:B, start : start + reads].contiguous(), positions)
            hidden.append(out[:1].clone())
            chosen.append(target.choose(out)[:1].clone())
        return torch.cat(hidden, 1), torch.cat(chosen, 1)

    plain = run(1, 1, most)

    def same(B: int, reads: int, count: int) -> bool:
        return all(torch.equal(a[:, :count], b) for a, b in zip(plain, run(B, reads, count), strict=True))

    # between them the passes take tiles of 16, 32 and 64 rows
    for B in sorted({1, min(4, largest), largest}):
        for reads in sorted({1, 2, R, 16}):
            if (B, reads) != (1, 1):
                yield {"check": f"bf16 bits: {reads} tokens a pass, batch {B}, against one token of one request",
                       "passed": same(B, reads, 16 if reads == 16 else 2 * R)}
    if can_overlap(sizes):
        target.launch = PDL_LAUNCH
        yield {"check": "bf16 bits with programmatic dependent launches", "passed": same(largest, R, 2 * R)}


def check_model(sizes: Sizes) -> Iterator[dict]:
    """The embedded model on this device.

    fp32 tokens equal the CPU's; the LSTM's acceptance equals the CPU's (a wrong draft changes no token); bf16 tokens with
    drafts equal those without.
    """
    texts = [text for _, text in sample_texts()[: sizes.texts]]
    plain = load(drafter=None, weights="fp32").generate(texts, max_new_tokens=sizes.new_tokens, draft_tokens=0)
    options = dict(max_new_tokens=sizes.new_tokens, batch_size=4)
    found = load(drafter="lookup", device=sizes.device, weights="fp32").generate(texts, **options)
    differ = sum(a != b for a, b in zip(plain.token_ids, found.token_ids, strict=True))
    yield {"check": f"fp32 with drafts: texts of {len(texts)} that differ from the CPU's", "differ": differ,
           "passed": differ <= len(texts) // 10}
    there, here = (load(drafter="lstm", device=device, weights="fp32").generate(texts, **options).stats
                   for device in (sizes.device, "cpu"))
    apart = abs(there.acceptance_rate - here.acceptance_rate)
    yield {"check": "fp32 drafts of the LSTM: acceptance here and on the CPU", "worst": apart,
           "passed": apart < 0.02 and here.acceptance_rate > 0}
    model = load(drafter="lookup", device=sizes.device, dtype=sizes.dtype, weights="bf16")
    for sampled in (False, True):
        outputs = [(model if K else model.with_drafter(None)).generate(
            texts, draft_tokens=K, do_sample=sampled, seed=3, batch_size=batch, max_new_tokens=sizes.new_tokens).token_ids
            for K, batch in ((0, 1), (0, 4), (1, 4), (sizes.draft_tokens, 1), (sizes.draft_tokens, 4))]
        yield {"check": f"bf16 {'seeded sampling' if sampled else 'greedy'} with drafts and in batches equals plain "
                        f"decoding of one request",
               "passed": all(ids == outputs[0] for ids in outputs)}


def compare_library(sizes: Sizes) -> Iterator[dict]:
    """The library's product and the project kernel: does the library give the same bits for 1 and 6 inputs, and which is
    faster?"""
    for geometry, config in sizes.geometries.items():
        C, F = config["d_model"], config["d_ff"]
        case = _Case(sizes)
        for N, K in ((3 * config["num_heads"] * config["d_kv"], C), (C, F)):
            weight, x = case.draw(N, K, scale=K**-0.5), case.draw(16, K)
            whole = torch.nn.functional.linear(x, weight)
            same = all(torch.equal(torch.nn.functional.linear(x[:n], weight), whole[:n]) for n in (1, 2, 6))
            six, squares = x[:6].contiguous(), torch.ones(6, -(-K // 16), device=sizes.device)
            out = case.empty(6, N)
            ours = seconds(sizes, lambda w=weight, x=six, s=squares, o=out: PROJECT["triton"](x, s, w, 1e-6, o))
            library = seconds(sizes, lambda w=weight, x=six: torch.nn.functional.linear(x, w))
            yield {"geometry": geometry, "shape": [N, K], "library_same_bits": same,
                   "ours_us": spread(ours)["median"] * 1e6, "library_us": spread(library)["median"] * 1e6}
