"""The filters of sampling beyond top-k and top-p."""

from __future__ import annotations

import numpy as np

from foredraft.engine.params import SamplingParams
from foredraft.engine.sampling.processor import Context
from foredraft.kernels.sampling.truncations import TRUNCATIONS


class Truncations:
    """Temperature, top-h, top-k, top-p, min-p, typical-p, epsilon and eta, in this order.

    They replace the temperature, top-k and top-p of verification, which apply where a request has no other filter.
    """

    def __init__(self, params: SamplingParams, context: Context):
        self.kernel = TRUNCATIONS[context.backend]
        self.settings = (float(params.temperature), float(params.top_h or 0), params.top_k, float(params.top_p),
                         float(params.min_p or 0), float(params.typical_p), float(params.epsilon_cutoff),
                         float(params.eta_cutoff))
        # with beams a token beside the end tokens must stay, as in transformers
        self.kept = 1 if params.num_beams == 1 else max(2, len(context.end_tokens) + 1)

    def __call__(self, tokens: np.ndarray, scores: np.ndarray) -> None:
        self.kernel(scores, *self.settings, self.kept)
