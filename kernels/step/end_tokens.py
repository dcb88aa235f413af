"""How many end tokens a sequence may have: the width of its row in the state."""

MAX_END_TOKENS = 8
