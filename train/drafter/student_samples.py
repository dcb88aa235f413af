"""Samples of a drafter in training, or of MiniLLM's mixture of drafter and teacher, by the engine.

They use the drafter's kernels, the engine's state and its counter-based random numbers, so a sample depends on the weights,
the source and the seed alone.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from foredraft.engine.models.t5 import T5
from foredraft.engine.models.t5_weights import T5Weights, copy_weights
from foredraft.engine.protocols import Drafter
from foredraft.engine.state import DecodeState, Draft, Verification
from foredraft.kernels.core.philox import request_seed, uniform_reference
from foredraft.kernels.sampling.sample import SAMPLE

# Tokens that a drafter samples in one call.
AHEAD = 16
# Random streams of the teacher's tokens and of the choice between teacher and drafter.
TEACHER, COIN = 101, 102


def drafter_of(model: torch.nn.Module, target: T5Weights) -> Drafter:
    """The engine's Drafter with the present weights of a module."""
    from foredraft.engine.drafters.neural.cnn import CNNDrafter, CNNModel
    from foredraft.engine.drafters.neural.drafter_module import Tables
    from foredraft.engine.drafters.neural.eagle_head import EagleDrafter, EagleModel
    from foredraft.engine.drafters.neural.lstm import LSTMDrafter, LSTMModel
    from foredraft.engine.drafters.neural.t5_drafter import ShallowT5Drafter, ShallowT5Model, T5Drafter, T5Model

    training = model.training
    try:
        if isinstance(model, T5Model):
            return T5Drafter(copy_weights(model.model))
        if isinstance(model, ShallowT5Model):
            return ShallowT5Drafter.of(model, target)
        kind = {LSTMModel: LSTMDrafter, CNNModel: CNNDrafter, EagleModel: EagleDrafter}[type(model)]
        return kind(model, Tables.of(model, target))
    finally:
        model.train(training)


def _state(target: T5, B: int, longest: int, K: int, temperature: float, seeds: list[int]) -> DecodeState:
    # beyond the longest sample, so that a drafter never reaches the limit
    return DecodeState(
        limits=torch.full((B,), longest + K + 2), draft_tokens=torch.full((B,), K),
        temperature=torch.full((B,), float(temperature)), top_k=torch.zeros(B, dtype=torch.int64),
        top_p=torch.ones(B), seeds=torch.tensor(seeds, dtype=torch.int64), start_token=target.start_token,
        end_token=target.end_token, width=target.config.d_model)


def _samples(state: DecodeState, longest: int) -> list[np.ndarray]:
    return [tokens[1 : min(length, longest + 1)].astype(np.uint16)
            for tokens, length in zip(state.tokens.numpy(), state.lengths.tolist(), strict=True)]


@torch.inference_mode()
def student_samples(drafter: Drafter, target: T5, sources: list[Tensor], encoded: list[Tensor], longest: int, seed: int,
                    temperature: float = 1.0) -> list[np.ndarray]:
    """Samples of the drafter's distribution.

    Parameters
    ----------
    drafter
        The drafter.
    target
        The target.
    sources
        B sources [S_i] int64.
    encoded
        The target's encoder outputs [S_i, C] float32.
    longest
        Longest sample in tokens.
    seed
        Seed of all samples.
    temperature
        0 is greedy.

    Returns
    -------
    list of numpy.ndarray
        B samples [T_i] uint16, with `</s>` where it was sampled.
    """
    from foredraft.engine.drafters.neural.eagle_head import EagleDrafter

    sequences = range(len(sources))
    state = _state(target, len(sources), longest, AHEAD, temperature, [request_seed(seed, b) for b in sequences])
    drafter.admit(sequences, sources, encoded)
    hidden = torch.zeros(len(sources), AHEAD + 1, target.config.d_model)
    while not bool((state.finished | (state.lengths > longest)).all()):
        draft = drafter.draft(state)
        tokens = torch.cat((draft.tokens, draft.tokens[:, -1:]), 1)
        # an EAGLE-style head continues from its own features
        features = drafter.features if isinstance(drafter, EagleDrafter) else hidden
        state.commit(draft, Verification(tokens, draft.lengths.clamp_min(1)), features)
    drafter.release(sequences)
    return _samples(state, longest)


@torch.inference_mode()
def mixed_samples(drafter: Drafter, target: T5, sources: list[Tensor], encoded: list[Tensor], longest: int, seed: int,
                  teacher_mix: float) -> list[np.ndarray]:
    """As student_samples, but of teacher_mix p + (1 - teacher_mix) q at temperature 1 (Gu et al. 2024, eq. 5)."""
    B, sequences, V = len(sources), range(len(sources)), target.config.vocab_size
    seeds = [request_seed(seed, b) for b in sequences]
    state = _state(target, B, longest, 1, 1.0, seeds)
    target.reserve(B, state.capacity + 1, 1, max(map(len, sources)))
    for b, output in zip(sequences, encoded, strict=True):
        target.attend_to(b, output)
    drafter.admit(sequences, sources, encoded)
    own_seeds = np.array([request_seed(own, TEACHER) for own in seeds], np.int64)
    chosen, distribution, lse = np.zeros(B, np.int64), np.empty((B, V), np.float32), np.empty(B)
    one, off = np.ones(B, np.float32), np.zeros(B, np.int64)
    while not bool((state.finished | (state.lengths > longest)).all()):
        draft, nothing = drafter.draft(state), Draft.empty(B, 1)
        hidden = target.decode(*state.inputs(nothing))
        logits = np.ascontiguousarray(target.logits(hidden)[:, 0].numpy())
        logits[state.finished.numpy()] = 0  # the target did not read finished sequences
        SAMPLE[state.backend](logits, one, off, one, own_seeds, state.lengths.numpy(), 0, chosen, distribution, lse)
        coin = [uniform_reference(own, COIN, int(length), 0) for own, length in zip(seeds, state.lengths, strict=True)]
        token = torch.where(torch.tensor(coin) < teacher_mix, torch.from_numpy(chosen), draft.tokens[:, 0])
        state.commit(nothing, Verification(torch.stack((token, token), 1), torch.ones(B, dtype=torch.int64)), hidden)
    target.release(sequences)
    drafter.release(sequences)
    return _samples(state, longest)
