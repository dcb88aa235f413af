"""The user's real target fits: FLAN-T5-XL's geometry, sharded, bfloat16, random weights, within 16 GiB."""

import json
import subprocess
import sys

import pytest
import torch

XL = dict(model_type="t5", is_encoder_decoder=True, vocab_size=32128, d_model=2048, d_kv=64, d_ff=5120, num_layers=24,
          num_decoder_layers=24, num_heads=32, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
          decoder_start_token_id=0, eos_token_id=1, pad_token_id=0)

DECODE = """
import json, resource, sys, time
from pathlib import Path
import torch
from foredraft.engine.t5_weights import load_weights
import foredraft

def anonymous():
    line = next(l for l in open("/proc/self/status") if l.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

foredraft.load  # the libraries are not the weights
before, began = anonymous(), time.perf_counter()
model = foredraft.load(sys.argv[1], drafter="lookup", dtype="bfloat16")
loaded, seconds = anonymous() - before, time.perf_counter() - began
model.target.end_token = -1
source = [100, 7, 8, 9, 100, 7, 8, 9, 50, 60, 1] * 4
fast = model.generate([source], max_new_tokens=8, draft_tokens=4)
plain = model.with_drafter(None).generate([source], max_new_tokens=8)
print(json.dumps(dict(
    parameters=model.target.weights.parameters(), load_seconds=seconds, loaded_bytes=loaded,
    peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, steps=fast.stats.steps,
    equal=fast.token_ids == plain.token_ids, emitted=fast.stats.emitted,
    step_seconds=plain.stats.seconds["verify"] / plain.stats.steps)))
"""


def write_checkpoint(folder):
    """Shards of about 1 GB; a seed per tensor, so that nothing large is ever held twice."""
    from safetensors.torch import save_file

    c, inner = XL, XL["d_kv"] * XL["num_heads"]
    shapes = {"shared.weight": (c["vocab_size"], c["d_model"]), "lm_head.weight": (c["vocab_size"], c["d_model"])}
    for side, layers in (("encoder", c["num_layers"]), ("decoder", c["num_decoder_layers"])):
        shapes[f"{side}.final_layer_norm.weight"] = (c["d_model"],)
        shapes[f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (32, c["num_heads"])
        for i in range(layers):
            kinds = ["SelfAttention"] + (["EncDecAttention"] if side == "decoder" else [])
            for j, kind in enumerate(kinds):
                p = f"{side}.block.{i}.layer.{j}"
                shapes |= {f"{p}.{kind}.{m}.weight": (inner, c["d_model"]) for m in "qkv"}
                shapes |= {f"{p}.{kind}.o.weight": (c["d_model"], inner), f"{p}.layer_norm.weight": (c["d_model"],)}
            p = f"{side}.block.{i}.layer.{len(kinds)}"
            shapes |= {f"{p}.DenseReluDense.{m}.weight": (c["d_ff"], c["d_model"]) for m in ("wi_0", "wi_1")}
            shapes |= {f"{p}.DenseReluDense.wo.weight": (c["d_model"], c["d_ff"]), f"{p}.layer_norm.weight": (c["d_model"],)}
    where, part, size = {}, {}, 0

    def flush():
        nonlocal part, size
        name = f"model-{len(set(where.values())) + 1:05d}.safetensors"
        save_file(part, folder / name, metadata={"format": "pt"})
        where.update(dict.fromkeys(part, name))
        part, size = {}, 0

    noise = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).bfloat16() * 0.02
    for name, shape in shapes.items():
        count = torch.Size(shape).numel()
        part[name] = noise.repeat(-(-count // len(noise)))[:count].roll(len(name) * 7919).view(shape)
        size += count * 2
        if size > 10**9:
            flush()
    flush()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (folder / "config.json").write_text(json.dumps(XL))


@pytest.mark.slow
def test_flan_t5_xl_geometry_decodes_within_16_gib(tmp_path, capsys):
    write_checkpoint(tmp_path)
    done = subprocess.run([sys.executable, "-c", DECODE, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    with capsys.disabled():
        print("\n" + done.stdout)
    weights = 2 * figures["parameters"]
    assert figures["parameters"] > 2.8e9
    assert figures["emitted"] == 8 and figures["equal"]
    assert figures["peak_bytes"] < 16 * 2**30
    # one copy of the weights and at most a tenth beside it
    assert figures["loaded_bytes"] < 1.1 * weights
