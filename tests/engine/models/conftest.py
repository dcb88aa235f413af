"""Tokenizer files as checkpoints hold them that have no tokenizer.json."""

import json
import random

import pytest


@pytest.fixture(scope="session")
def spiece(tmp_path_factory):
    """A folder with a spiece.model of 300 pieces, T5's normaliser and its special tokens."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("spiece")
    words = ["the quick brown fox does n't jump over lazy dogs", "she sells sea shells , is it not ?",
             "\u00e9t\u00e9 fin na\u00efve", "I 'm here and we 've seen it . they 're gone !"]
    random.seed(2)
    lines = [" ".join(random.choices(" ".join(words).split(), k=8)) for _ in range(400)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(folder / "spiece"), vocab_size=120, model_type="unigram", pad_id=0,
        eos_id=1, unk_id=2, bos_id=-1, pad_piece="<pad>", user_defined_symbols=["[SEP]"], hard_vocab_limit=False,
        minloglevel=2)
    (folder / "spiece.vocab").unlink()
    (folder / "config.json").write_text(json.dumps({"model_type": "t5"}))
    return folder


@pytest.fixture(scope="session")
def merges(tmp_path_factory):
    """A folder as CodeT5's: byte-level BPE in vocab.json and merges.txt, sentinels in added_tokens.json."""
    from tokenizers import ByteLevelBPETokenizer

    folder = tmp_path_factory.mktemp("codet5")
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(["def add(a, b): return a + b", "for i in range(10): print(i)"] * 9, vocab_size=300,
                                  special_tokens=["<pad>", "<s>", "</s>", "<unk>", "<mask>"], show_progress=False)
    tokenizer.save_model(str(folder))
    size = tokenizer.get_vocab_size()
    sentinels = {f"<extra_id_{i}>": size + 9 - i for i in range(10)}
    (folder / "added_tokens.json").write_text(json.dumps(sentinels))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "RobertaTokenizer"}))
    (folder / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": list(sentinels), "mask_token": {
        "content": "<mask>", "single_word": False, "lstrip": True, "rstrip": False, "normalized": True}}))
    return folder
