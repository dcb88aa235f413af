"""alpha of a drafter's module while it trains: on the target's own output, both distributions by one teacher-forced pass each."""

from __future__ import annotations

import torch
from torch import Tensor

from foredraft.train.data.drafter_data import collate_drafter, pad_sequences
from foredraft.train.data.pairs import IGNORE


@torch.no_grad()
def overlaps(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """sum_x min(p, q) [N] for logits [N, V] of both; at temperature 0 whether their argmaxes agree."""
    if temperature == 0:
        return (student.argmax(-1) == teacher.argmax(-1)).float()
    p, q = (torch.softmax(logits.float() / temperature, -1) for logits in (teacher, student))
    return torch.minimum(p, q).sum(-1)


@torch.no_grad()
def teacher_forced_alpha(model, context, articles, temperature: float, batch_size: int = 8) -> float:
    """E[sum_x min(p, q)] over every prefix of the articles' first own summaries (Leviathan et al. 2023, Corollary 3.6)."""
    total = places = 0.0
    encodings = context.encoded(articles)
    numbers = [i for i in range(len(articles)) if articles.own[i]]
    numbers.sort(key=lambda i: len(articles.own[i][0]))
    for first in range(0, len(numbers), batch_size):
        part = numbers[first : first + batch_size]
        batch = collate_drafter([{"article": i, "source": articles.sources[i], "gold": None, "own": articles.own[i][0],
                                  "coin": 0.0} for i in part])
        input_ids, labels = pad_sequences(batch["own"], context.engine.start_token)
        scored = labels != IGNORE
        source_ids, mask = batch["source_ids"], batch["source_mask"]
        if encodings is None:
            encoded = context.teacher.encode(source_ids.to(context.device), mask.to(context.device))
        else:
            encoded = encodings.batch(part, source_ids.shape[1])
        inputs = [x.to(context.device) for x in (input_ids, encoded, mask, source_ids, scored)]
        hidden = context.teacher.hidden(*inputs[:3])
        student = model(*inputs[:4], scored=inputs[4], **({"features": hidden} if model.reads_features else {}))
        teacher = context.teacher.score(hidden[inputs[4]])
        total += float(overlaps(student, teacher, temperature).sum())
        places += int(scored.sum())
    return total / places
