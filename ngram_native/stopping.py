"""When a point-mass draft stops: the rule of the n-gram and prompt-lookup drafters.

Let r_i be the probability that the first i drafted tokens are all accepted (the product of the drafter's probabilities), and
let a further query position cost `cost` of a target pass. A draft of n tokens then gives 1 + r_1 + ... + r_n tokens for
1 + cost n passes. The n-th token is drafted only if it raises that ratio, that is, if

    r_n / cost  >  (1 + r_1 + ... + r_{n-1}) / (1 + cost (n - 1)).
"""

from __future__ import annotations

from foredraft.kernels.core.backend import njit

# Cost of a further query position as a share of a target pass, measured with the embedded target.
COST = 0.05


def is_worth_drafting(reach, count, expected, cost):
    """Whether the next token is drafted; floats, or tensors for a batch.

    Parameters
    ----------
    reach
        r_n, of the next token.
    count
        n - 1, tokens drafted so far.
    expected
        1 + r_1 + ... + r_{n-1}, tokens expected from the pass without it.
    cost
        Cost of a further query position in passes.
    """
    return reach * (1 + cost * count) > cost * expected


# For compiled callers.
is_worth_drafting_jit = njit(inline="always")(is_worth_drafting)
