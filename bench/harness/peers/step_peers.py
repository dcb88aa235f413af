"""Plain decoding by other engines from the same checkpoint: seconds a token, by the difference of two lengths.

A peer is a function of a checkpoint folder. It returns run(source, tokens), which greedily decodes exactly that many tokens
past any end token, or raises methods.Absent with the reason why it cannot run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from foredraft.bench.harness.interleave import orders, wait_until_idle
from foredraft.bench.harness.measure import spread
from foredraft.bench.harness.methods import Absent, load_peer, static_compiled

Run = Callable[[Sequence[int], int], list[int]]


def _foredraft(weights: str, dtype: str = "float32"):
    def build(folder: Path) -> Run:
        from foredraft.engine.load import load

        model = load(folder, drafter=None, dtype=dtype, weights=weights)
        return lambda source, tokens: model.generate([list(source)], max_new_tokens=tokens, eos_token_id=()).token_ids[0]

    return build


def _transformers(compiled: bool):
    def build(folder: Path) -> Run:
        import torch

        model = load_peer(str(folder), "float32", "cpu")
        extra = static_compiled() if compiled else {}
        model.generation_config.eos_token_id = None

        @torch.inference_mode()
        def run(source: Sequence[int], tokens: int) -> list[int]:
            ids = torch.tensor([list(source)])
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, **extra)
            return out[0, 1:].tolist()

        return run

    return build


def _ctranslate2(compute_type: str):
    def build(folder: Path) -> Run:
        from foredraft.bench.harness.peers.ctranslate2_peer import Translator

        translator = Translator(folder, compute_type)
        return lambda source, tokens: translator([source], tokens, shortest=tokens)[0]

    return build


def _llama_cpp(stored: str):
    def build(folder: Path) -> Run:
        from foredraft.bench.harness.peers.llama_cpp_peer import Decoder

        return Decoder(folder, stored)

    return build


def _onnxruntime(folder: Path) -> Run:
    from foredraft.bench.harness.peers.onnxruntime_peer import Decoder

    return Decoder(folder)


PEERS: dict[str, Callable[[Path], Run]] = {
    "foredraft-fp32": _foredraft("fp32"),
    "foredraft-bf16": _foredraft("bf16"),
    "foredraft-int8": _foredraft("int8", "auto"),
    "foredraft-int4": _foredraft("int4", "auto"),
    "transformers": _transformers(False),
    "transformers-compiled": _transformers(True),
    "ctranslate2-fp32": _ctranslate2("float32"),
    "ctranslate2-bf16": _ctranslate2("bfloat16"),
    "ctranslate2-int8": _ctranslate2("int8"),
    "llama.cpp-f16": _llama_cpp("F16"),
    "llama.cpp-q8_0": _llama_cpp("Q8_0"),
    "llama.cpp-q4_0": _llama_cpp("Q4_0"),
    "onnxruntime-int8": _onnxruntime,
}


def timed(run: Run, source: Sequence[int], short: int, long: int) -> tuple[float, float]:
    """Seconds a token, (seconds of `long` tokens - seconds of `short` tokens) / (long - short), without encoding and set-up;
    and the seconds of `long` tokens with both."""
    times = []
    for tokens in (short, long):
        start = time.perf_counter()
        run(source, tokens)
        times.append(time.perf_counter() - start)
    return (times[1] - times[0]) / (long - short), times[1]


def compare_peers(folder: Path, names: Sequence[str], source: Sequence[int], short: int, long: int,
                  repeats: int) -> dict[str, dict]:
    """Milliseconds a token of each engine, interleaved; those of a whole text of `long` tokens; the ratio of a token to the
    first engine's; how many tokens differ from its tokens.

    An engine that cannot run, or fails, has the reason under "absent".
    """
    runs, found, tokens = {}, {}, {}
    for name in names:
        try:
            runs[name] = PEERS[name](folder)
            tokens[name] = runs[name](source, long)
        except Exception as error:  # another library may raise anything; it is reported
            failed = f"it fails: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
            found[name] = {"absent": str(error) if isinstance(error, Absent) else failed}
            runs.pop(name, None)
    taken = {name: [] for name in runs}
    order = orders(list(runs), seed=0)
    for _ in range(repeats):
        for name in next(order):
            wait_until_idle()
            taken[name].append(timed(runs[name], source, short, long))
    first = next(iter(taken), None)
    for name, values in taken.items():
        token, text = (spread([one[part] for one in values]) for part in (0, 1))
        found[name] = {
            "ms": {key: value * 1e3 for key, value in token.items()}, "text_ms": text["median"] * 1e3,
            "over_first": token["median"] / spread([one[0] for one in taken[first]])["median"],
            "differ": sum(a != b for a, b in zip(tokens[name], tokens[first], strict=False)),
        }
    return {name: found[name] for name in names}
