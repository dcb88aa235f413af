"""The acceptance rate alpha of a drafter in training, from one teacher-forced pass of drafter and target each.

bench/harness/alpha.py computes the same expectation for the engine's drafters, which draft token by token.
"""

from __future__ import annotations

import torch

from foredraft.train.data.drafter_data import Articles, collate_drafter, pad_sequences
from foredraft.train.data.pairs import IGNORE
from foredraft.train.drafter.divergences import acceptance_probability
from foredraft.train.drafter.training_context import TrainingContext


@torch.no_grad()
def teacher_forced_alpha(model, context: TrainingContext, articles: Articles, temperature: float,
                         batch_size: int = 8) -> float:
    """The mean acceptance probability over every prefix of the articles' first own summaries.

    Parameters
    ----------
    model
        The drafter's module.
    context
        The target.
    articles
        Articles with the target's output at this temperature.
    temperature
        At 0 a prefix counts 1 if the argmaxes agree, else 0.
    batch_size
        Articles of a pass.

    Returns
    -------
    float
        alpha, 0 to 1.
    """
    total = prefixes = 0.0
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
        if temperature == 0:
            accepted = (student.argmax(-1) == teacher.argmax(-1)).float()
        else:
            p, q = (torch.softmax(logits.float() / temperature, -1) for logits in (teacher, student))
            accepted = acceptance_probability(p, q)
        total += float(accepted.sum())
        prefixes += int(scored.sum())
    return total / prefixes
