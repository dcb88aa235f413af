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

SOURCES = [np.array(ids, np.uint16) for ids in ([5, 6, 7, 1], [9, 1], [8, 8, 1])]
SUMMARIES = [np.array(ids, np.uint16) for ids in ([4, 3, 1], [11], [12, 1])]


def test_the_teacher_is_the_checkpoint_and_takes_no_gradient(tiny_checkpoint):
    teacher = Teacher(tiny_checkpoint)
    whole = T5ForConditionalGeneration.from_pretrained(tiny_checkpoint).eval()
    source, mask, read = torch.tensor([[5, 6, 1, 0]]), torch.tensor([[1, 1, 1, 0]]), torch.tensor([[0, 4, 9]])
    scored = torch.tensor([[True, False, True]])
    logits = teacher.logits(read, teacher.encode(source, mask), mask, scored)
    with torch.no_grad():
        expected = whole(input_ids=source, attention_mask=mask, decoder_input_ids=read).logits[scored]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert not logits.requires_grad and not teacher.model.training
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


def test_kept_logits_are_log_probabilities_over_the_whole_vocabulary(tiny_checkpoints, tmp_path):
    teacher = Teacher(tiny_checkpoints["v1.0"])
    kept = cache_top_logits(tmp_path, teacher, "hash", SOURCES, SUMMARIES, 5, 2.0, batch_size=2)
    ids, log_p = kept.batch_size([2, 0])
    source, read = torch.tensor([[8, 8, 1]]), torch.tensor([[0, 12]])
    mask = torch.ones_like(source)
    distribution = torch.log_softmax(teacher.logits(read, teacher.encode(source, mask), mask, torch.ones(1, 2).bool()) / 2, -1)
    assert ids.shape == log_p.shape == (5, 5)
    torch.testing.assert_close(log_p[:2], distribution.gather(1, ids[:2]), rtol=1e-2, atol=1e-2)
    assert (log_p.exp().sum(-1) < 1).all()
    # from then on nobody needs the teacher; for other settings somebody does
    cache_top_logits(tmp_path, None, "hash", SOURCES, SUMMARIES, 5, 2.0)
    with pytest.raises(UserError, match="make it where the teacher fits"):
        cache_top_logits(tmp_path, None, "hash", SOURCES, SUMMARIES, 5, 1.0)


def test_encodings_are_kept_and_padded_with_zeros(tiny_checkpoints, tmp_path, monkeypatch):
    target = T5(load_weights(tiny_checkpoints["v1.0"]))
    encode_sources(tmp_path, target, "hash", SOURCES, progress=False)
    monkeypatch.setattr(target, "encode", None)
    rows = encode_sources(tmp_path, target, "hash", SOURCES, progress=False).batch([1, 0], 4)
    monkeypatch.undo()
    with torch.inference_mode():
        expected = target.encode(torch.tensor([5, 6, 7, 1]))
    torch.testing.assert_close(rows[1], expected, rtol=2e-3, atol=2e-3)
    assert not rows[0, 2:].any() and rows[0, :2].any()
    assert [path.suffix for path in tmp_path.iterdir()] == [".f16"]


def test_no_space_is_told_before_the_work(tiny_checkpoints, tmp_path, monkeypatch):
    target = T5(load_weights(tiny_checkpoints["v1.0"]))
    full = type("Full", (), {"f_bavail": 0, "f_frsize": 4096})
    monkeypatch.setattr(module.os, "statvfs", lambda _: full)
    with pytest.raises(UserError, match="no space left for"):
        encode_sources(tmp_path, target, "hash", SOURCES, progress=False)
    assert not list(tmp_path.iterdir())
