"""Shared fixtures. Triton's interpreter is chosen before anything can import triton."""

import os

# set TRITON_INTERPRET=0 to run the kernels on a GPU
os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# tiny models: waking a second thread costs more than it brings, most of all on a busy machine
os.environ.setdefault("OMP_NUM_THREADS", "1")
# kernels that are large enough divide their work
os.environ.setdefault("FOREDRAFT_THREADS", "2")
# threads that wait must not spin in the way of the suite's other processes
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

from pathlib import Path  # noqa: E402  the environment above comes first

import pytest  # noqa: E402  the environment above comes first


def _mend_interpreted_dot() -> None:
    """Triton's interpreter keeps bfloat16 as the uint16 of its bits and multiplies those: widen them first. And it leaves a
    tile to NumPy's BLAS, which on some machines sums a row in an order that depends on its place in the tile, as no GPU
    does: multiply row by row."""
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def mended(self, a, b, accumulator, *precision):
        if a.dtype.scalar == tl.bfloat16:
            a, b = self.cast_impl(a, tl.float32), self.cast_impl(b, tl.float32)
        left, right, kept = a.data, b.data, accumulator.data
        rows = np.matmul(left[..., :, None, :], right[..., None, :, :], dtype=kept.dtype)[..., 0, :]
        return TensorHandle(rows + kept, accumulator.dtype.scalar)

    InterpreterBuilder.create_dot = mended


if os.environ["TRITON_INTERPRET"] == "1":
    try:
        _mend_interpreted_dot()
    except ImportError:
        pass  # no triton: its kernels' tests are skipped


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """`@pytest.mark.first(n)`: the cases of a test after its first n are marked `full`."""
    seen = {}
    for item in items:
        if (marker := item.get_closest_marker("first")) is not None:
            name = item.nodeid.partition("[")[0]
            seen[name] = seen.get(name, 0) + 1
            if seen[name] > marker.args[0]:
                item.add_marker("full")


def starts_without_numba(item) -> bool:
    """Whether a test's file compiles none of the engine's numba kernels."""
    return item.path.parent.name in ("ngram_native", "data") or item.path.stem.endswith("_triton")


@pytest.hookimpl(trylast=True, specname="pytest_collection_modifyitems")
def pytest_split_compilation(items):
    """The second of two processes starts in the middle of the list. There it finds tests that need no compiled kernels; by
    the time that it needs some, the first process has compiled and cached most of them."""
    without = [item for item in items if starts_without_numba(item)]
    others = [item for item in items if not starts_without_numba(item)]
    middle = min(len(items) // 2, len(others))
    items[:] = others[:middle] + without + others[middle:]


# Tiny but complete: more heads than layers, an inner width that is not the model's, no sizes that are powers of two
_TINY = dict(
    vocab_size=100, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=3, num_heads=3,
    relative_attention_num_buckets=8, relative_attention_max_distance=16, dropout_rate=0.0,
    decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
)
_KINDS = {
    "v1.0": dict(feed_forward_proj="relu", tie_word_embeddings=True),
    "v1.1": dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
}


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory) -> dict[str, Path]:
    """Checkpoint directories of random T5 models (without tokenizers): "v1.0" (relu, tied), "v1.1" (gated, untied)."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import T5Config, T5ForConditionalGeneration

    paths = {}
    for seed, (kind, extra) in enumerate(_KINDS.items()):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = T5ForConditionalGeneration(T5Config(**_TINY, **extra)).eval()
            head = torch.randn(_TINY["vocab_size"], _TINY["d_model"])
        paths[kind] = tmp_path_factory.mktemp(f"t5-{kind}")
        model.save_pretrained(paths[kind])
        if not extra["tie_word_embeddings"]:
            # transformers 5 ties the head when it builds a model; a head of its own has to be put into the file
            file = paths[kind] / "model.safetensors"
            save_file(load_file(file) | {"lm_head.weight": head}, file, metadata={"format": "pt"})
    return paths


@pytest.fixture(scope="session")
def tiny_model_path(tiny_checkpoints, tmp_path_factory) -> Path:
    """The v1.1 checkpoint with a tokenizer of words "w3" .. "w99" (ids 3 to 99) and an end token."""
    import shutil

    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("t5-with-tokenizer")
    shutil.copytree(tiny_checkpoints["v1.1"], folder, dirs_exist_ok=True)
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {f"w{i}": i for i in range(3, 100)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(params=list(_KINDS))
def tiny_checkpoint(request, tiny_checkpoints) -> Path:
    """One tiny checkpoint directory of each kind in turn."""
    return tiny_checkpoints[request.param]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder named by FOREDRAFT_DATA; mark tests that use it with `realdata`."""
    named = os.environ.get("FOREDRAFT_DATA")
    if not named:
        pytest.skip("FOREDRAFT_DATA is not set: no real articles")
    folder = Path(named)
    if not folder.is_dir():
        pytest.skip(f"FOREDRAFT_DATA names {folder}, which is no directory: no real articles")
    return folder


class FakeModel:
    """Stands in for engine.generate.Model where only its door matters: it copies the source, as fast as a list can be.

    Its drafter's name decides the distribution: "wrong" changes one token of each long output, "none" drafts nothing, any
    other drafts two tokens a round, the second of which is accepted every other time.
    """

    path = "fake"
    dtype = "float32"
    source_limit = 64

    def __init__(self, tokenizer, drafter: str | None = "lookup"):
        from types import SimpleNamespace

        from foredraft.engine.protocols import Capabilities

        self.tokenizer = tokenizer
        self.drafter = SimpleNamespace(name=drafter or "none", capabilities=Capabilities())
        self.target = SimpleNamespace(end_token=1)

    def with_drafter(self, drafter):
        from foredraft.errors import UserError

        if drafter == "ngram":
            raise UserError("no table")
        return FakeModel(self.tokenizer, drafter)

    def describe(self) -> dict:
        return {"model": "fake", "hash": "0" * 64, "dtype": "float32", "weights": "fp32", "parameters": 1, "threads": 1,
                "drafter": self.drafter.name}

    def generate(self, inputs, *, max_new_tokens=128, draft_tokens=5, do_sample=False, temperature=1.0, top_k=0,
                 top_p=1.0, seed=None, stop_strings=None, streamer=None, batch_size=8, max_source=None, kv_memory=None,
                 verification="token", big_little=None):
        from foredraft.engine.output import Output
        from foredraft.engine.params import SamplingParams

        SamplingParams(max_new_tokens, draft_tokens, do_sample, temperature, top_k, top_p, seed)
        out = Output()
        for item in inputs:
            ids = list(self.tokenizer.encode(item).ids if isinstance(item, str) else item)[:max_new_tokens]
            if self.drafter.name == "wrong" and len(ids) > 3:
                ids[3] += 1
            drafted = self.drafter.name != "none"
            out.token_ids.append(ids)
            out.texts.append(self.tokenizer.decode(ids, skip_special_tokens=True))
            out.proposers.append([int(drafted and place % 3 != 2) for place in range(len(ids))])
            out.stats.steps += len(ids)
            out.stats.emitted += len(ids)
            if drafted:
                out.stats.drafted += 2 * len(ids)
                out.stats.tested_at, out.stats.accepted_at = [4, 2], [2, 1]
                out.stats.tested, out.stats.accepted, out.stats.covered = 6, 3, len(ids)
        out.stats.seconds = {"encode": 1e-6, "draft": 1e-6, "verify": 1e-6, "other": 1e-6, "total": 4e-6}
        if streamer is not None:
            import torch

            for token in out.token_ids[0]:
                streamer.put(torch.tensor([token]))
            streamer.end()
        return out


@pytest.fixture(scope="session")
def word_tokenizer():
    """A tokenizers.Tokenizer of whole words: <pad> 0, </s> 1 (added at the end), <unk> 2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    words = [f"\u2581w{i}" for i in range(60)]
    vocabulary = {token: i for i, token in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    return tokenizer


@pytest.fixture
def fake_model(word_tokenizer) -> FakeModel:
    return FakeModel(word_tokenizer)


@pytest.fixture
def command(monkeypatch, capsysbinary):
    """command(*arguments, stdin=b""): exit code, stdout, stderr of `foredraft ARGUMENTS`."""
    import io
    import sys

    from foredraft.cli import main as cli

    def run(*arguments, stdin: bytes = b""):
        monkeypatch.setattr(sys, "argv", ["foredraft", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        return code, *(text.decode("utf-8", "surrogateescape") for text in capsysbinary.readouterr())

    return run
