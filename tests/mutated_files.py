"""Every reader of files from outside, on files with damage: `python -m tests.mutated_files --inputs 10000 --seed 0`.

Each input is a valid file with one to three seeded mutations: flipped bits, bytes that are cut out, doubled, inserted or
overwritten, a truncation, a changed number, a JSON value of another kind. Files with a checksum of their header are also
mutated inside the header and signed again. A reader may read the file or refuse it by a UserError of one line. Everything
else is a failure: another exception, more than SLOWEST seconds, more than LARGEST bytes of memory.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import random
import re
import struct
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

# Limits of one input: seconds, and bytes of address space above what the process has before the first input.
SLOWEST, LARGEST = 10.0, 2 << 30
V = 40
ODD_VALUES = [None, True, -1, 0, 1, 2**31, 2**63, 10**30, 1e309, -1e309, float("nan"), 0.5, "", "x", "\ud800", [], [[]], {},
              {"a": {}}, ["x"], [1, 2], "9" * 5000]
ODD_NUMBERS = [b"-1", b"0", b"1e999", b"nan", b"99999999999999999999", b"", b"0x10", b"1_0", b"-0.0", b"\xff"]


@dataclass
class Reader:
    """make: writes the valid file and returns it. read: reads it, as the commands do. signed: whether its header has a
    checksum after which JSON follows (ngram_native.files)."""

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    signed: bool = False


@dataclass
class Tally:
    """What became of a reader's inputs."""

    inputs: int = 0
    read: int = 0
    refused: int = 0
    slowest: float = 0.0
    failures: list[str] = field(default_factory=list)


def mutate(data: bytes, rng: random.Random, signed: bool) -> bytes:
    """One to three mutations of a file."""
    for _ in range(rng.randint(1, 3)):
        kinds = [_flip, _cut, _double, _insert, _overwrite, _truncate, _number, _value]
        data = (rng.choice([_header, *kinds]) if signed else rng.choice(kinds))(data, rng)
    return data


def _span(data: bytes, rng: random.Random) -> tuple[int, int]:
    begin = rng.randrange(len(data) + 1)
    return begin, min(len(data), begin + rng.choice([1, 2, 8, 64, 1000]))


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 2, 8])):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(data: bytes, rng: random.Random) -> bytes:
    begin, end = _span(data, rng)
    return data[:begin] + data[end:]


def _double(data: bytes, rng: random.Random) -> bytes:
    begin, end = _span(data, rng)
    return data[:end] + data[begin:]


def _insert(data: bytes, rng: random.Random) -> bytes:
    begin, _ = _span(data, rng)
    return data[:begin] + rng.randbytes(rng.choice([1, 4, 100])) + data[begin:]


def _overwrite(data: bytes, rng: random.Random) -> bytes:
    begin, end = _span(data, rng)
    return data[:begin] + bytes([rng.choice([0, 255, 127, 128])]) * (end - begin) + data[end:]


def _truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _number(data: bytes, rng: random.Random) -> bytes:
    found = list(re.finditer(rb"-?\d+(\.\d+)?", data[:200_000]))
    if not found:
        return data
    match = rng.choice(found)
    return data[: match.start()] + rng.choice(ODD_NUMBERS) + data[match.end() :]


def _value(data: bytes, rng: random.Random) -> bytes:
    """Another value somewhere in a JSON text, or in the line of a JSON Lines file."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    for text, join in ((data, lambda new: new),
                       (lines[at], lambda new: b"\n".join([*lines[:at], new, *lines[at + 1 :]]))):
        try:
            return join(_odd(json.loads(text), rng))
        except (ValueError, RecursionError):
            continue
    return data


def _odd(value: object, rng: random.Random) -> bytes:
    """JSON with one odd value, or nested very deeply."""
    places: list[tuple] = []

    def walk(one: object) -> None:
        for key, inner in one.items() if isinstance(one, dict) else enumerate(one) if isinstance(one, list) else ():
            places.append((one, key))
            walk(inner)

    walk(value)
    if not places or rng.random() < 0.02:
        # deeper than the parser goes
        return b"[" * 100_000
    holder, key = rng.choice(places)
    if rng.random() < 0.2:
        del holder[key]
    else:
        holder[key] = rng.choice(ODD_VALUES)
    return json.dumps(value).encode("utf-8", "surrogatepass")


def _header(data: bytes, rng: random.Random) -> bytes:
    """A mutation of the JSON header, whose checksum is made to match."""
    prefix = struct.Struct("<8sII32s")
    if len(data) < prefix.size:
        return data
    magic, version, size, _ = prefix.unpack(data[: prefix.size])
    text = data[prefix.size : prefix.size + size]
    try:
        new = _odd(json.loads(text), rng)
    except (ValueError, RecursionError):
        return data
    start, new_start = (-(-(prefix.size + length) // 64) * 64 for length in (size, len(new)))
    head = prefix.pack(magic, version, len(new), hashlib.sha256(new).digest()) + new
    return head.ljust(new_start, b"\0") + data[start:]


def readers() -> dict[str, Reader]:
    """Every reader, by the name of what it reads."""
    found = {
        "safetensors": Reader(lambda folder: _checkpoint(folder) / "model.safetensors", _read_checkpoint),
        "config.json": Reader(lambda folder: _checkpoint(folder) / "config.json", _read_checkpoint),
        "generation_config.json": Reader(_generation_config, _read_generation_config),
        "adapter": Reader(_adapter, _read_adapter),
        "pytorch_model.bin": Reader(_pickled, _read_pickled),
        "tokenizer.json": Reader(lambda folder: _tokenizer(folder), _read_tokenizer),
        "added tokens": Reader(_added_tokens, _read_tokenizer),
        "spiece.model": Reader(_sentencepiece, _read_tokenizer),
        "ngram table": Reader(_table, _read_table, True),
        "ngram table's arrays": Reader(_table, _read_table),
        "counts": Reader(_counts, _read_counts, True),
        "ARPA": Reader(_arpa, _read_arpa),
        "FastLLM text": Reader(_fastllm, _read_fastllm),
        "jsonl": Reader(lambda folder: _lines(folder / "a.jsonl"), _read_lines),
        "jsonl.gz": Reader(lambda folder: _lines(folder / "a.jsonl.gz"), _read_lines),
        "pairs .npz": Reader(_npz, _read_npz),
        "tokens .npy": Reader(_npy, _read_npy),
        "output to resume": Reader(_journal, _read_journal),
        "settings to resume": Reader(_settings, _read_settings),
        "draft tree": Reader(_tree, _read_tree),
        "skip set": Reader(_skip, _read_skip),
        "pseudo-dataset": Reader(_pseudo, _read_pseudo),
    }
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        return found
    return found | {"parquet": Reader(_parquet, _read_parquet)}


def _checkpoint(folder: Path) -> Path:
    import torch
    from safetensors.torch import save_file

    from foredraft.engine.models.spec import ModelConfig, tensor_parts

    entries = {"model_type": "t5", "vocab_size": V, "d_model": 16, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2,
               "is_encoder_decoder": True, "feed_forward_proj": "gated-gelu", "eos_token_id": [1],
               "relative_attention_num_buckets": 8, "relative_attention_max_distance": 16, "layer_norm_epsilon": 1e-6,
               "tie_word_embeddings": False, "decoder_start_token_id": 0, "pad_token_id": 0, "n_positions": 32}
    (folder / "config.json").write_text(json.dumps(entries))
    parts = tensor_parts(ModelConfig.from_json(folder / "config.json"), False)
    save_file({name: torch.ones(part.shape) for part in parts.values() for layer in part.names for name in layer},
              folder / "model.safetensors")
    return folder


def _read_checkpoint(path: Path) -> None:
    from foredraft.engine.models.t5_weights import load_weights
    from foredraft.engine.models.unknown_names import unknown_entries

    load_weights(path.parent, "float32", None, None)
    unknown_entries(path.parent)


def _generation_config(folder: Path) -> Path:
    (folder / "config.json").write_text('{"model_type": "t5"}')
    path = folder / "generation_config.json"
    path.write_text(json.dumps({"max_new_tokens": 20, "num_beams": 2, "length_penalty": 1.5, "eos_token_id": [1],
                                "bad_words_ids": [[3, 4]], "suppress_tokens": [5], "forced_bos_token_id": None,
                                "exponential_decay_length_penalty": [2, 1.1], "early_stopping": True}))
    return path


def _read_generation_config(path: Path) -> None:
    from foredraft.engine.arguments import checkpoint_settings, task_entries

    checkpoint_settings(path.parent)
    task_entries(path.parent, "summarization")


def _adapter(folder: Path) -> Path:
    import torch
    from safetensors.torch import save_file

    path = folder / "adapter_config.json"
    path.write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"], "bias": "none",
                                "rank_pattern": {"q": 2}, "alpha_pattern": {}, "use_rslora": True}))
    name = "base_model.model.decoder.block.0.layer.0.SelfAttention.q.lora_"
    save_file({f"{name}A.weight": torch.ones(2, 16), f"{name}B.weight": torch.ones(8, 2)},
              folder / "adapter_model.safetensors")
    base = folder / "base"
    base.mkdir()
    _checkpoint(base)
    return path


def _read_adapter(path: Path) -> None:
    from foredraft.engine.models.t5_weights import load_weights

    load_weights(path.parent / "base", "float32", None, path.parent)


def _pickled(folder: Path) -> Path:
    import torch

    torch.save({"shared.weight": torch.ones(4, 4), "bias": torch.ones(3)}, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


def _read_pickled(path: Path) -> None:
    from foredraft.engine.models.pickled import PickledTensors

    with PickledTensors(path.parent) as tensors:
        for name in tensors.names:
            tensors.raw(name).sum()


def _tokenizer(folder: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"\u2581w{i}", -float(i)) for i in range(3, V))]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def _read_tokenizer(path: Path) -> None:
    from foredraft.engine.models.tokenizer import load_tokenizer

    if (tokenizer := load_tokenizer(path.parent)) is not None:
        tokenizer.decode(tokenizer.encode("w3 w4 ? \u00e9").ids)


def _added_tokens(folder: Path) -> Path:
    path = folder / "tokenizer_config.json"
    added = {str(259 + i): {"content": f"<extra_id_{i}>", "special": True} for i in range(3)}
    path.write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer", "added_tokens_decoder": added,
                                "clean_up_tokenization_spaces": True}))
    return path


def _sentencepiece(folder: Path) -> Path:
    def message(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2, len(data)]) + data

    names = ["<pad>", "</s>", "<unk>", *(f"\u2581w{i}" for i in range(3, 20))]
    pieces = [message(1, name.encode()) + b"\x15" + struct.pack("<f", -i) + bytes([24, 3 if i < 2 else 2 if i == 2 else 1])
              for i, name in enumerate(names)]
    trainer = bytes([24, 1, 192, 2, 2])
    path = folder / "spiece.model"
    path.write_bytes(b"".join(message(1, piece) for piece in pieces) + message(2, trainer))
    return path


def _some_counts():
    from foredraft.ngram_native.count import count

    draw = np.random.default_rng(0)
    texts = [[0, *np.minimum(draw.geometric(0.3, 8) + 2, V - 1).tolist(), 1] for _ in range(30)]
    return count(np.concatenate(texts), np.cumsum([0, *map(len, texts)]), 3, V)


def _table(folder: Path) -> Path:
    from foredraft.ngram_native.smooth import fit

    fit(_some_counts(), quantise=folder.name.endswith("s")).save(folder / "t.ngram")
    return folder / "t.ngram"


def _read_table(path: Path) -> None:
    from foredraft.ngram_native import query
    from foredraft.ngram_native.assemble import levels_of
    from foredraft.ngram_native.table import Table

    table = Table.open(path)
    for context in ([], [0], [3, 4], [5, 3, 3]):
        known = np.array(context, np.int64)
        query.distribution(table, known)
        query.probability(table, known, 3)
    lengths = np.full(2, 3)
    query.draft(table, np.full((2, 8), 3), lengths, lengths, 1, 0.1, np.zeros((2, 4), np.int64), np.zeros(2, np.int64))
    levels_of(table)


def _counts(folder: Path) -> Path:
    from foredraft.ngram_native.counts_file import save_counts

    save_counts(_some_counts(), folder / "c.counts")
    return folder / "c.counts"


def _read_counts(path: Path) -> None:
    from foredraft.ngram_native.counts_file import merge_files, open_counts
    from foredraft.ngram_native.smooth import fit

    fit(open_counts(path))
    merge_files([path, path], path.parent / "merged.counts")


def _arpa(folder: Path) -> Path:
    from foredraft.ngram_native.arpa import arpa_words, write_arpa
    from foredraft.ngram_native.smooth import fit

    write_arpa(fit(_some_counts()), folder / "t.arpa", arpa_words(V))
    return folder / "t.arpa"


def _read_arpa(path: Path) -> None:
    from foredraft.ngram_native.arpa import arpa_words, read_arpa

    read_arpa(path, arpa_words(V))


def _fastllm(folder: Path) -> Path:
    from foredraft.ngram_native.fastllm_text import write_fastllm

    write_fastllm(_some_counts(), folder, 1.0)
    return folder / "2.ckpt"


def _read_fastllm(path: Path) -> None:
    from foredraft.ngram_native.fastllm_text import read_fastllm

    read_fastllm(path.parent, 3, V, 1.0)


def _lines(path: Path) -> Path:
    text = "".join(json.dumps({"id": i, "article": f"w{i} w4", "highlights": "w3"}) + "\n" for i in range(3, 9)).encode()
    path.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)
    return path


def _read_lines(path: Path) -> None:
    from foredraft.cli.generate_file import count_lines, read_texts
    from foredraft.train.data import pairs

    count_lines(path)
    for _, name, text in read_texts(path, "article", lambda *why: None):
        json.dumps([name, text], allow_nan=False)
    for texts in pairs.read_texts(path, ("article", "highlights"), lambda message: None):
        "".join(texts).encode()


def _pairs():
    from foredraft.train.data.pairs import Pairs

    tokens, starts = np.array([3, 4, 1, 5, 1], np.uint16), np.array([0, 3, 5])
    return Pairs(tokens, starts, tokens, starts, "abc")


def _npz(folder: Path) -> Path:
    from foredraft.train.data.pairs import save_pairs

    save_pairs(_pairs(), folder / "p.npz")
    return folder / "p.npz"


def _read_npz(path: Path) -> None:
    from foredraft.train.data.pairs import load_pairs

    found = load_pairs(path, None, 2, 2)
    [(found.source(i), found.target(i)) for i in range(len(found))]


def _npy(folder: Path) -> Path:
    np.save(folder / "t.npy", np.array([3, 4, 1, 5, 1], np.uint16))
    return folder / "t.npy"


def _read_npy(path: Path) -> None:
    from foredraft.train.drafter.fit_ngram import sequences

    list(sequences(path, "highlights", None))


def _parquet(folder: Path) -> Path:
    import pyarrow
    from pyarrow.parquet import write_table

    write_table(pyarrow.table({"highlights": ["w3 w4", "w5"] * 10}), folder / "t.parquet")
    return folder / "t.parquet"


def _read_parquet(path: Path) -> None:
    from tokenizers import Tokenizer, models

    from foredraft.train.drafter.fit_ngram import sequences

    list(sequences(path, "highlights", Tokenizer(models.WordLevel({"w3": 0}, unk_token="w3"))))


def _journal(folder: Path) -> Path:
    from foredraft.cli.journal import Journal

    with Journal(folder / "out.jsonl", True) as journal:
        for i in range(4):
            journal.append({"id": f"a{i}", "index": i, "summary": "w3"})
    return folder / "out.jsonl"


def _read_journal(path: Path) -> None:
    from foredraft.cli.journal import Journal

    Journal(path, True).close()


def _settings(folder: Path) -> Path:
    from foredraft.cli import settings_file

    settings_file.write(folder / "out.jsonl", {"--seed": 1, "--temperature": 0.5})
    return settings_file.path_of(folder / "out.jsonl")


def _read_settings(path: Path) -> None:
    from foredraft.cli import settings_file

    settings_file.check(path.with_name("out.jsonl"), {"--seed": 1, "--temperature": 0.5})


def _tree(folder: Path) -> Path:
    from foredraft.engine.drafters.tree_shape import Shape

    Shape((0, 0, 1, 1, 2)).save(folder / "tree.json")
    return folder / "tree.json"


def _read_tree(path: Path) -> None:
    from foredraft.engine.drafters.tree_shape import Shape

    Shape.load(path).tree()


def _skip(folder: Path) -> Path:
    from foredraft.engine.drafters.skip_mask import SkipSet
    from foredraft.engine.models.checkpoint import weights_hash

    SkipSet("0", weights_hash(_checkpoint(folder)), draft_ids=(3, 4)).save(folder / "skip.json")
    return folder / "skip.json"


def _read_skip(path: Path) -> None:
    from foredraft.engine.drafters.skip_mask import SkipSet, parse_skip

    parse_skip(SkipSet.load(path, path.parent).skip, 2)


def _pseudo(folder: Path) -> Path:
    from foredraft.train.data.shards import write_shard

    record = {"id": "a", "sample": 0, "article": "w3", "highlights": "w3", "source_ids": [3, 1], "target_ids": [3, 1]}
    write_shard([record, record], folder / "pseudo-00000.jsonl")
    return folder / "pseudo-00000.jsonl"


def _read_pseudo(path: Path) -> None:
    from foredraft.train.drafter.fit_ngram import sequences

    list(sequences(path.parent, "highlights", None))


def run(inputs: int, seed: int, folder: Path, names: list[str] | None = None) -> dict[str, Tally]:
    """Give each reader its share of `inputs` mutated files; prints each failure with its reader and number."""
    from foredraft.errors import UserError

    chosen = {name: reader for name, reader in readers().items() if not names or name in names}
    tallies = {name: Tally() for name in chosen}
    for number, (name, reader) in enumerate(chosen.items()):
        own = folder / f"{number}-{name.replace(' ', '-')}"
        own.mkdir()
        path = reader.make(own)
        valid, tally = path.read_bytes(), tallies[name]
        # the valid file is read, and whatever is compiled is compiled
        reader.read(path)
        if number == 0:
            _limit_memory()
        for i in range(inputs // len(chosen)):
            path.write_bytes(mutate(valid, random.Random(f"{seed} {name} {i}"), reader.signed))
            began, tally.inputs = time.monotonic(), tally.inputs + 1
            try:
                reader.read(path)
                tally.read += 1
            except UserError as error:
                tally.refused += 1
                if "\n" in str(error):
                    _fail(tally, name, i, f"a message of several lines: {str(error)[:200]!r}")
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                _fail(tally, name, i, "".join(traceback.format_exception(error)[-3:]))
            tally.slowest = max(tally.slowest, time.monotonic() - began)
            if time.monotonic() - began > SLOWEST:
                _fail(tally, name, i, f"took {time.monotonic() - began:.1f} s")
        path.write_bytes(valid)
    return tallies


def _fail(tally: Tally, name: str, number: int, why: str) -> None:
    tally.failures.append(why)
    if len(tally.failures) <= 3:
        print(f"{name}, input {number}: {why}", file=sys.stderr, flush=True)


def _limit_memory() -> None:
    """No input may need more than LARGEST bytes, where the system can limit a process."""
    try:
        import resource

        import psutil
    except ImportError:
        return
    used = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (used + LARGEST, resource.getrlimit(resource.RLIMIT_AS)[1]))


def main() -> None:
    """Print a table of all readers; exit code 1 if there was a failure."""
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", action="append", help="only this reader; repeatable")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tallies = run(given.inputs, given.seed, Path(folder), given.reader)
    print("| file | inputs | refused in one line | read | failures | slowest (s) |\n|---|---|---|---|---|---|")
    for name, one in tallies.items():
        print(f"| {name} | {one.inputs} | {one.refused} | {one.read} | {len(one.failures)} | {one.slowest:.2f} |")
    print(f"| all | {sum(one.inputs for one in tallies.values())} | {sum(one.refused for one in tallies.values())} | "
          f"{sum(one.read for one in tallies.values())} | {sum(len(one.failures) for one in tallies.values())} | "
          f"{max(one.slowest for one in tallies.values()):.2f} |")
    sys.exit(any(one.failures for one in tallies.values()))


if __name__ == "__main__":
    main()
