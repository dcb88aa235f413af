"""A widened T5 computes the function of its original: our engine, transformers, and every tensor's shape and density."""

import json
import shutil

import pytest
import torch
from peer_versions import needs_transformers
from safetensors.torch import load_file, save_file

from foredraft.engine.models.checkpoint import StoredTensors
from foredraft.engine.models.geometry import SIZES
from foredraft.engine.models.projection import read_projection
from foredraft.engine.models.t5 import T5
from foredraft.engine.models.t5_weights import load_weights
from foredraft.engine.models.widened_checkpoint import widen_checkpoint

# no size is a multiple of the original's, nor even
TINY = dict(d_model=45, d_kv=13, d_ff=67, num_layers=3, num_decoder_layers=5, num_heads=5)
SOURCE = torch.tensor([5, 9, 33, 5, 9, 40, 7, 7, 81, 1])
TOKENS = torch.randint(3, 100, (1, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=["v1.0", "v1.1", "umt5"])
def original(request, tiny_checkpoints, tmp_path_factory):
    """Norms with weights of their own and an epsilon that matters."""
    from transformers import UMT5Config, UMT5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("original") / "target"
    if request.param == "umt5":
        entries = json.loads((tiny_checkpoints["v1.1"] / "config.json").read_text())
        sizes = {name: value for name, value in entries.items() if name in (*TINY, "vocab_size") or "relative" in name}
        with torch.random.fork_rng():
            torch.manual_seed(7)
            UMT5ForConditionalGeneration(UMT5Config(**sizes)).save_pretrained(folder)
    else:
        shutil.copytree(tiny_checkpoints[request.param], folder)
    generator = torch.Generator().manual_seed(3)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if "layer_norm" in name or "bias" in name:
            tensors[name] = tensor + torch.randn(tensor.shape, generator=generator) * 0.4
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    entries = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(entries | {"layer_norm_epsilon": 0.3}))
    return folder


@pytest.fixture(scope="module")
def widened(original):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "tiny", TINY)
        widen_checkpoint(original, original.parent / "widened", "tiny")
    return original.parent / "widened"


@torch.inference_mode()
def outputs(folder):
    """The encoder's output, the decoder's hidden states and the logits."""
    target = T5(load_weights(folder))
    target.reserve(1, 24, 23, len(SOURCE))
    (encoded,) = target.admit([0], [SOURCE])
    hidden = target.decode(TOKENS, torch.arange(24)[None].contiguous())
    return encoded, hidden.clone(), target.logits(hidden).clone()


def test_outputs_are_the_originals(original, widened):
    (encoded, hidden, logits), (wide_encoded, wide_hidden, wide_logits) = outputs(original), outputs(widened)
    assert (logits - wide_logits).abs().max() < 1e-4 < logits.std()
    projection = read_projection(widened)
    assert wide_hidden.shape[-1] == projection.width == TINY["d_model"]
    assert torch.allclose(wide_encoded @ projection.encoder_output, encoded, atol=1e-5)
    assert torch.allclose(wide_hidden @ projection.hidden, hidden, atol=1e-5)


@torch.inference_mode()
def test_transformers_loads_it_and_agrees(original, widened):
    from transformers import AutoModelForSeq2SeqLM

    if json.loads((original / "config.json").read_text())["model_type"] == "umt5":
        needs_transformers("5.23")
    logits = []
    for folder in (original, widened):
        theirs = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
        logits.append(theirs(input_ids=SOURCE[None], decoder_input_ids=TOKENS).logits)
    assert (logits[0] - logits[1]).abs().max() < 1e-4
    assert theirs.config.d_model == TINY["d_model"] and sum(p.numel() for p in theirs.parameters()) == sum(
        tensor.numel() for tensor in load_file(widened / "model.safetensors").values())


def test_zeros_are_where_the_documentation_says(original, widened):
    """New heads and units are zero where they are written; all else is dense."""
    before = load_file(original / "model.safetensors")
    for name, tensor in load_file(widened / "model.safetensors").items():
        zeros = int((tensor == 0).sum())
        if "layer_norm" in name:
            assert (tensor == 1).all(), name
        elif name.endswith((".o.weight", ".wo.weight")):
            # whole columns, one for each inner dimension without effect
            used = tensor.shape[1] - int((tensor == 0).all(0).sum())
            inner = TINY["d_kv"] * 3 if name.endswith(".o.weight") else 48
            assert used == (inner if name in before else 0) and zeros == (tensor.shape[1] - used) * tensor.shape[0], name
        else:
            assert tensor.any(0).all() and tensor.any(1).all(), name


def test_the_seed_decides(original, widened, tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "tiny", TINY)
    for seed in (0, 1):
        widen_checkpoint(original, tmp_path / str(seed), "tiny", seed=seed)
    with StoredTensors(widened) as a, StoredTensors(tmp_path / "0") as b, StoredTensors(tmp_path / "1") as c:
        names = [name for name in a.names if "layer_norm" not in name]
        assert all(torch.equal(a.raw(name), b.raw(name)) for name in names)
        # an output projection of a new layer is zero with every seed
        assert all(not torch.equal(a.raw(name), c.raw(name)) for name in names if a.raw(name).any())


@pytest.mark.full
def test_the_embedded_target(tmp_path):
    from foredraft import embedded

    widen_checkpoint(embedded.TARGET, tmp_path / "small", "flan-t5-small")
    logits, wide_logits = (outputs(folder)[2] for folder in (embedded.TARGET, tmp_path / "small"))
    assert (logits - wide_logits).abs().max() < 1e-4
