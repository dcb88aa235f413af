"""Drafters that were trained on a target draft the same on a widened one, on the CPU and on a device."""

import pytest
import torch
from doubles import SIZES, make_state
from doubles import admit as admit_all

from foredraft.engine.drafters.registry import model_class, open_drafter
from foredraft.engine.models import geometry
from foredraft.engine.models.t5 import T5
from foredraft.engine.models.t5_cuda_weights import load_cuda_weights
from foredraft.engine.models.t5_weights import load_weights
from foredraft.engine.models.widened_checkpoint import widen_checkpoint
from foredraft.engine.verify import verify
from foredraft.errors import UserError

TINY = dict(d_model=45, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=4, num_heads=5)
SOURCES = [torch.tensor([5, 9, 33, 5, 9, 40, 1]), torch.tensor([7, 8] * 20 + [1])]
HEAD = dict(d_kv=12, d_ff=20)


@pytest.fixture(scope="module", params=["v1.0", "v1.1"])
def folders(request, tiny_checkpoints, tmp_path_factory):
    """A target, tied or not, and the widened one."""
    out = tmp_path_factory.mktemp("widened") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(geometry.SIZES, "tiny", TINY)
        widen_checkpoint(tiny_checkpoints[request.param], out, "tiny")
    return tiny_checkpoints[request.param], out


def saved(kind, target, folder, **sizes):
    torch.manual_seed(1)
    model_class(kind).from_target(target, **(SIZES | {"head": HEAD})[kind], **sizes).save(folder)
    return folder


@torch.inference_mode()
def drafted(target, drafter, **options):
    """Every step's draft tokens and, where they are sampled, their distributions; and the text."""
    state = make_state(2, 14, 3, target.config.d_model, end_token=-1, **options)
    admit_all(target, drafter, state, SOURCES)
    tokens, distributions = [], []
    while not state.finished.all():
        draft = drafter.draft(state)
        is_drafted = torch.arange(3) < draft.lengths[:, None]
        tokens.append(draft.tokens[is_drafted].clone())
        if draft.logits is not None:
            distributions.append((draft.logits - draft.lse[..., None])[is_drafted].exp())
        hidden = target.decode(*state.inputs(draft))
        state.commit(draft, verify(state, draft, hidden, target), hidden)
    return torch.cat(tokens), torch.cat(distributions) if distributions else None, state.tokens.clone()


@pytest.mark.parametrize(("kind", "sizes"), [
    ("lstm", {}), ("lstm", {"shared_embeddings": False}), ("cnn", {}), ("t5shallow", {}), ("head", {}), ("t5small", {})])
def test_the_same_drafts(folders, kind, sizes, tmp_path):
    """Tokens are equal, distributions up to rounding."""
    saved(kind, folders[0], tmp_path, **sizes)
    for options in ({}, dict(temperature=1.0, seeds=[3, 4])):
        (tokens, distributions, text), (wide_tokens, wide_distributions, wide_text) = (
            drafted(target, open_drafter(tmp_path, target.weights, folder, None), **options)
            for folder in folders for target in [T5(load_weights(folder))])
        assert torch.equal(text, wide_text) and torch.equal(tokens, wide_tokens) and len(tokens)
        assert distributions is None or torch.allclose(distributions, wide_distributions, atol=2e-5)


@pytest.mark.parametrize("kind", ["lstm", "t5shallow", "head"])
@torch.inference_mode()
def test_the_module_reads_a_widened_target(folders, kind, tmp_path):
    """Logits of the torch module, which the engine's drafter equals."""
    saved(kind, folders[0], tmp_path)
    logits = []
    for folder in folders:
        target, tokens = T5(load_weights(folder)), torch.tensor([[0, 5, 9, 33]])
        target.reserve(1, 4, 3, 7)
        (encoded,) = target.admit([0], [SOURCES[0]])
        hidden = target.decode(tokens, torch.arange(4)[None].contiguous())
        model = model_class(kind).load(tmp_path, folder).eval()
        inputs = tokens, encoded[None], torch.ones(1, 7, dtype=torch.bool), SOURCES[0][None]
        logits.append(model(*inputs, features=hidden) if kind == "head" else model(*inputs))
    assert torch.allclose(*logits, atol=1e-4)


def test_a_drafter_of_the_widened_target_itself(folders, tmp_path):
    saved("lstm", folders[1], tmp_path)
    target = T5(load_weights(folders[1]))
    assert len(drafted(target, open_drafter(tmp_path, target.weights, folders[1], None))[0])


def test_a_drafter_of_another_target_is_refused(folders, tiny_checkpoints, tmp_path):
    (other,) = set(tiny_checkpoints.values()) - {folders[0]}
    saved("lstm", other, tmp_path)
    with pytest.raises(UserError, match="made for a target of width 32, .* has 45"):
        open_drafter(tmp_path, load_weights(folders[1]), folders[1], None)


@pytest.mark.parametrize("kind", ["lstm", "t5shallow"])
@torch.inference_mode()
def test_on_a_device(folders, kind, tmp_path):
    """The drafter's tables, and what it keeps of a source: all that it reads of its target."""
    saved(kind, folders[0], tmp_path)
    found = []
    for folder in folders:
        drafter = open_drafter(tmp_path, load_cuda_weights(folder, "cpu"), folder, None)
        target = T5(load_weights(folder))
        admit_all(target, drafter, make_state(2, 2, 1, target.config.d_model), SOURCES)
        inner = drafter if kind == "lstm" else drafter.t5
        tables = drafter if kind == "lstm" else drafter.t5.weights
        found.append((tables.embedding, drafter.vocabulary.head, inner.buffers["pages_k"], inner.buffers["pages_v"]))
    (embedding, head, *before), (wide_embedding, wide_head, *after) = found
    assert torch.equal(embedding, wide_embedding) and torch.equal(head, wide_head)
    for a, b in zip(before, after, strict=True):
        assert torch.allclose(a, b, atol=1e-5) and a.any()
