"""Checkpoints of each family, in each way that transformers stores weights: the same logits and the same texts."""

import json
import shutil

import pytest
import torch
from peer_versions import needs_transformers
from safetensors.torch import load_file, save_file

import foredraft
from foredraft.engine.models.t5 import T5
from foredraft.engine.models.t5_weights import load_weights

SIZES = dict(vocab_size=140, d_model=24, d_kv=8, d_ff=40, num_layers=2, num_decoder_layers=3, num_heads=2,
             relative_attention_num_buckets=8, relative_attention_max_distance=16, decoder_start_token_id=0)
SOURCE = [5, 9, 33, 5, 9, 40, 77, 12, 1]


def written(folder, kind, seed=0, **entries):
    """Save a random checkpoint of transformers' class `kind`; entries None are left out of config.json."""
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = getattr(transformers, f"{kind}Config")(**SIZES | {k: v for k, v in entries.items() if v is not None})
        model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    model.save_pretrained(folder)
    path = folder / "config.json"
    known = {name: value for name, value in json.loads(path.read_text()).items() if entries.get(name, 0) is not None}
    path.write_text(json.dumps(known | {name: value for name, value in entries.items() if value is not None}))
    return folder


def theirs(folder):
    from transformers import AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()


def greedy(model, tokens, longest):
    """transformers' tokens, without its cache, which fails where encoder and decoder have different numbers of layers."""
    return model.generate(tokens, max_new_tokens=longest, do_sample=False, use_cache=False)[0, 1:].tolist()


def logits_of(folder, tokens, **options):
    ours = T5(load_weights(folder, **options))
    with torch.inference_mode():
        ours.reserve(1, tokens.shape[1], tokens.shape[1] - 1, len(SOURCE))
        ours.admit([0], [torch.tensor(SOURCE)])
        hidden = ours.decode(tokens, torch.arange(tokens.shape[1])[None].contiguous())
        return ours.logits(hidden)[0].clone()


def check_logits(folder, tolerance=1e-4, **options):
    tokens = torch.randint(3, 100, (1, 12), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = theirs(folder)(input_ids=torch.tensor([SOURCE]), decoder_input_ids=tokens).logits[0]
    assert torch.allclose(logits_of(folder, tokens, **options), expected, atol=tolerance)


# as transformers 4 wrote it and as transformers 5 does: tied or not, scaled or not, by either entry, or by none
@pytest.mark.first(12)
@pytest.mark.parametrize(("kind", "model_type"), [("T5", "t5"), ("MT5", "mt5"), ("UMT5", "umt5")])
@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize(("tied", "scaled"), [(True, None), (False, None), (None, None), (True, False), (False, True)])
def test_tied_or_not_and_scaled_or_not(tmp_path, kind, model_type, tied, scaled, head):
    if kind == "UMT5" and tied is False and scaled is None:
        needs_transformers("5.23")
    folder = written(tmp_path / "model", kind, tie_word_embeddings=tied, scale_decoder_outputs=scaled)
    if head:
        tensors = load_file(folder / "model.safetensors")
        own = torch.randn(tensors["shared.weight"].shape, generator=torch.Generator().manual_seed(1))
        save_file(tensors | {"lm_head.weight": own}, folder / "model.safetensors", metadata={"format": "pt"})
    assert json.loads((folder / "config.json").read_text())["model_type"] == model_type
    check_logits(folder)


@pytest.mark.parametrize("kind", ["T5", "MT5", "UMT5"])
def test_entries_that_a_family_has_defaults_for(tmp_path, kind):
    folder = written(tmp_path, kind)
    left_out = {"feed_forward_proj", "dense_act_fn", "is_gated_act", "layer_norm_epsilon", "relative_attention_max_distance",
                "pad_token_id", "eos_token_id", "scale_decoder_outputs", "tie_word_embeddings"}
    kept = {name: value for name, value in json.loads((folder / "config.json").read_text()).items() if name not in left_out}
    (folder / "config.json").write_text(json.dumps(kept))
    check_logits(folder)
    assert load_weights(folder).config.gated == (kind != "T5")


@pytest.mark.parametrize(("dtype", "stored"), [
    (torch.float32, "fp32"), (torch.float16, "fp32"), (torch.bfloat16, "bf16"), (torch.float64, "fp32")])
@pytest.mark.parametrize("sharded", [False, True])
def test_types_and_shards(tmp_path, dtype, stored, sharded):
    whole = written(tmp_path / "whole", "T5", feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    folder = tmp_path / "model"
    theirs(whole).to(dtype).save_pretrained(folder, max_shard_size="20KB" if sharded else "1GB")
    assert (folder / "model.safetensors.index.json").exists() == sharded
    assert load_weights(folder).stored == stored
    check_logits(folder)


def test_a_vocabulary_of_mt5(tmp_path):
    folder = written(tmp_path, "MT5", vocab_size=250112, num_layers=1, num_decoder_layers=1)
    source = [250_000, 9, 249_999, 1]
    expected = greedy(theirs(folder), torch.tensor([source]), 8)
    assert foredraft.load(folder).generate([source], max_new_tokens=8).token_ids[0] == expected


@pytest.mark.parametrize(("feed_forward", "special"), [
    ("relu", dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)),
    ("gated-gelu", dict(pad_token_id=1, eos_token_id=2, n_positions=512, output_past=True, tie_word_embeddings=False)),
], ids=["CodeT5", "MADLAD-400"])
def test_special_tokens_of_other_numbers(tmp_path, feed_forward, special):
    folder = written(tmp_path, "T5", 3, feed_forward_proj=feed_forward, **special)
    (folder / "generation_config.json").unlink()
    model = foredraft.load(folder)
    assert (model.target.start_token, model.target.end_tokens) == (0, (2,)) and model.warnings == []
    expected = greedy(theirs(folder), torch.tensor([SOURCE]), 20)
    assert model.generate([SOURCE], max_new_tokens=20).token_ids[0] == expected


def check_texts(folder, tokenizer, texts):
    original = theirs(folder)
    for drafter in (None, "lookup"):
        out = foredraft.load(folder, drafter=drafter).generate(texts, max_new_tokens=12)
        for text, found in zip(texts, out.texts, strict=True):
            tokens = greedy(original, tokenizer(text, return_tensors="pt").input_ids, 12)
            assert found == tokenizer.decode(tokens, skip_special_tokens=True)


def test_byt5_from_text_to_text(tmp_path):
    from transformers import ByT5Tokenizer

    folder = written(tmp_path, "T5", vocab_size=384, tokenizer_class="ByT5Tokenizer")
    check_texts(folder, ByT5Tokenizer(), ["\u00e9t\u00e9 \u4e2d\u6587", "plain text, plain text", "\U0001f600"])


def test_byt5_streams_half_characters(tmp_path):
    """A random model writes bytes at random: no stream crashes, and its text ends as the whole text."""
    from transformers import ByT5Tokenizer

    folder = written(tmp_path, "T5", 2, vocab_size=384, tokenizer_class="ByT5Tokenizer")
    model, seen = foredraft.load(folder), []

    class Streamer:
        def put(self, tokens):
            seen.extend(tokens.flatten().tolist())
            model.tokenizer.decode(seen, skip_special_tokens=True)

        def end(self):
            seen.append("end")

    out = model.generate(["\u4e2d"], max_new_tokens=40, do_sample=True, temperature=2.0, seed=1, streamer=Streamer())
    assert seen.pop() == "end" and seen[-len(out.token_ids[0]) :] == out.token_ids[0]
    assert out.texts[0] == ByT5Tokenizer().decode(out.token_ids[0], skip_special_tokens=True)
    stopped = model.generate(["\u4e2d"], max_new_tokens=40, do_sample=True, temperature=2.0, seed=1, stop_strings=["\u4e2d"])
    assert stopped.token_ids[0] == out.token_ids[0][: len(stopped.token_ids[0])]


def test_codet5_from_text_to_text(merges, tmp_path):
    from transformers import RobertaTokenizer

    tokenizer = RobertaTokenizer.from_pretrained(merges)
    folder = written(tmp_path, "T5", vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=1, eos_token_id=2)
    shutil.copytree(merges, folder, dirs_exist_ok=True)
    check_texts(folder, tokenizer, ["def add(a, b):", "for i in range(10): print(i)", "\u00e9 \u4e2d"])


def test_a_fine_tune_with_spiece_model_alone(spiece, tmp_path):
    pytest.importorskip("google.protobuf")
    from transformers import T5Tokenizer

    tokenizer = T5Tokenizer.from_pretrained(spiece)
    folder = written(tmp_path, "T5", vocab_size=len(tokenizer) + 5)
    shutil.copy(spiece / "spiece.model", folder)
    check_texts(folder, tokenizer, ["the quick brown fox", "is it not ?  she sells", "\u4e2d <extra_id_0>"])
