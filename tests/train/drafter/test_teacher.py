from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import T5ForConditionalGeneration

from foredraft.engine.models.t5 import T5
from foredraft.engine.models.t5_weights import load_weights
from foredraft.errors import UserError
from foredraft.train.data import encoder_outputs as module
from foredraft.train.data.encoder_outputs import encode_sources
from foredraft.train.drafter.teacher import Teacher, cache_top_logits

SOURCES = [np.array(source, np.uint16) for source in ([5, 6, 7, 1], [9, 1], [8, 8, 1])]
SUMMARIES = [np.array(summary, np.uint16) for summary in ([4, 3, 1], [11], [12, 1])]


def test_the_teacher_equals_the_checkpoint_and_has_no_gradients(tiny_checkpoint):
    teacher = Teacher(tiny_checkpoint)
    model = T5ForConditionalGeneration.from_pretrained(tiny_checkpoint).eval()
    source, mask, read = torch.tensor([[5, 6, 1, 0]]), torch.tensor([[1, 1, 1, 0]]), torch.tensor([[0, 4, 9]])
    scored = torch.tensor([[True, False, True]])
    logits = teacher.logits(read, teacher.encode(source, mask), mask, scored)
    with torch.no_grad():
        expected = model(input_ids=source, attention_mask=mask, decoder_input_ids=read).logits[scored]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert not logits.requires_grad and not teacher.model.training
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


def test_cached_logits_are_log_probabilities_over_the_whole_vocabulary(tiny_checkpoints, tmp_path):
    teacher = Teacher(tiny_checkpoints["v1.0"])
    cached = cache_top_logits(tmp_path, teacher, "hash", SOURCES, SUMMARIES, 5, 2.0, batch_size=2)
    tokens, log_p = cached.batch([2, 0])
    source, read = torch.tensor([[8, 8, 1]]), torch.tensor([[0, 12]])
    mask = torch.ones_like(source)
    logits = teacher.logits(read, teacher.encode(source, mask), mask, torch.ones(1, 2).bool())
    expected = torch.log_softmax(logits / 2, -1)
    assert tokens.shape == log_p.shape == (5, 5)
    torch.testing.assert_close(log_p[:2], expected.gather(1, tokens[:2]), rtol=1e-2, atol=1e-2)
    assert (log_p.exp().sum(-1) < 1).all()
    # the cache replaces the teacher, but not for other settings
    cache_top_logits(tmp_path, None, "hash", SOURCES, SUMMARIES, 5, 2.0)
    with pytest.raises(UserError, match="no such cache"):
        cache_top_logits(tmp_path, None, "hash", SOURCES, SUMMARIES, 5, 1.0)


def test_encodings_are_cached_and_padded_with_zeros(tiny_checkpoints, tmp_path, monkeypatch):
    target = T5(load_weights(tiny_checkpoints["v1.0"]))
    encode_sources(tmp_path, target, "hash", SOURCES, progress=False)
    monkeypatch.setattr(target, "encode", None)
    encoded = encode_sources(tmp_path, target, "hash", SOURCES, progress=False).batch([1, 0], 4)
    monkeypatch.undo()
    with torch.inference_mode():
        expected = target.encode(torch.tensor([5, 6, 7, 1]))
    torch.testing.assert_close(encoded[1], expected, rtol=2e-3, atol=2e-3)
    assert not encoded[0, 2:].any() and encoded[0, :2].any()
    assert [path.suffix for path in tmp_path.iterdir()] == [".f16"]


def test_a_full_disk_is_named_before_encoding(tiny_checkpoints, tmp_path, monkeypatch):
    target = T5(load_weights(tiny_checkpoints["v1.0"]))
    full = type("Full", (), {"f_bavail": 0, "f_frsize": 4096})
    monkeypatch.setattr(module.os, "statvfs", lambda _: full)
    with pytest.raises(UserError, match="no space for"):
        encode_sources(tmp_path, target, "hash", SOURCES, progress=False)
    assert not list(tmp_path.iterdir())
