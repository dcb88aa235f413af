"""Every reader of files from outside: a function that writes a valid file, and one that reads it as the commands do."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# tokens of the vocabularies
V = 40


@dataclass
class Reader:
    """make: writes the valid file and returns it. read: reads it, as the commands do. signed: whether its header has a
    checksum after which JSON follows (ngram_native.files)."""

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    signed: bool = False


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
