"""commit, inputs and truncate on states written by hand."""

import torch
from doubles import make_state

from foredraft.engine.state import Draft, Verification


def verification_of(state, rows):
    tokens = torch.zeros(state.batch_size, state.max_draft + 1, dtype=torch.int64)
    for row, ids in enumerate(rows):
        tokens[row, : len(ids)] = torch.tensor(ids)
    return Verification(tokens, torch.tensor([len(ids) for ids in rows]))


def draft_of(state, lengths):
    draft = Draft.empty(state.batch_size, state.max_draft)
    draft.lengths = torch.tensor(lengths)
    draft.proposer[:] = 2
    return draft


def test_inputs_mark_what_is_not_read():
    state = make_state(3, 9, 3, 4)
    state.tokens[:, 1] = 8
    state.lengths += 1
    state.finished[2] = True
    tokens, positions, parents = state.inputs(draft_of(state, [3, 1, 2]))
    assert tokens[:, 0].tolist() == [8, 8, 8] and parents is None
    assert positions.tolist() == [[1, 2, 3, 4], [1, 2, -1, -1], [-1] * 4]


def test_inputs_of_a_tree_use_depth():
    state = make_state(1, 9, 3, 4)
    draft = draft_of(state, [3])
    draft.parents = torch.tensor([[0, 0, 2]])
    _, positions, parents = state.inputs(draft)
    assert positions.tolist() == [[0, 1, 1, 2]] and parents.tolist() == [[-1, 0, 0, 2]]


def test_commit_is_ragged_and_counts():
    state = make_state(3, [9, 9, 2], 3, 4)
    hidden = torch.arange(3 * 4 * 4, dtype=torch.float32).view(3, 4, 4)
    state.commit(draft_of(state, [3, 3, 3]), verification_of(state, [[5], [6, 7, 8], [9, 9, 9, 9]]), hidden)
    assert state.lengths.tolist() == [2, 4, 3] and state.finished.tolist() == [False, False, True]
    assert state.tokens[1, :4].tolist() == [0, 6, 7, 8]
    assert state.proposer[1, 1:4].tolist() == [2, 2, 0]
    assert state.proposer[2, 1:3].tolist() == [2, 2]
    assert state.accepted_at.sum(1).tolist() == [0, 2, 2] and state.tested_at.sum(1).tolist() == [1, 3, 2]
    assert torch.equal(state.hidden[1], hidden[1, 2])
    before = state.tokens[2].clone()
    state.commit(draft_of(state, [0, 0, 0]), verification_of(state, [[1], [4], [4]]), hidden)
    assert state.finished.tolist() == [True, False, True] and state.num_steps.tolist() == [2, 2, 1]
    assert torch.equal(state.tokens[2, :3], before[:3]) and int(state.lengths[2]) == 3


def test_truncate_takes_back_what_was_counted():
    state = make_state(1, 9, 4, 4)
    state.commit(draft_of(state, [4]), verification_of(state, [[5, 6, 7, 8, 9]]), torch.zeros(1, 5, 4))
    state.truncate(0, 3)
    assert state.finished.tolist() == [True] and state.lengths.tolist() == [3]
    assert state.accepted_at.tolist() == [[1, 1, 0, 0]] and state.tested_at.tolist() == [[1, 1, 0, 0]]


def test_allowed_leaves_room_for_the_targets_own_token():
    state = make_state(3, [1, 3, 9], [5, 5, 2], 4)
    assert state.allowed().tolist() == [0, 2, 2]
    state.finished[2] = True
    assert state.allowed().tolist() == [0, 2, 0]


def test_a_started_sequence_is_as_good_as_new():
    state = make_state(2, 9, 3, 4, temperature=0.5)
    state.commit(draft_of(state, [3, 2]), verification_of(state, [[5, 6], [7, 8, 9]]), torch.ones(2, 4, 4))
    tensors = {name: value for name, value in vars(state).items() if isinstance(value, torch.Tensor)}
    other = {name: value[0].clone() for name, value in tensors.items() if len(value) == 2}
    distribution = dict(limit=6, draft_tokens=2, temperature=0.0, top_k=4, top_p=0.5, seed=-3)
    state.start(1, **distribution)
    fresh = make_state(2, [9, 5], [3, 2], 4, seeds=[0, -3])
    for name in ("lengths", "finished", "limits", "draft_tokens", "seeds", "temperature", "hidden", "num_steps", "covered",
                 "drafted", "tested_at", "accepted_at", "last_counts", "last_tested", "last_accepted"):
        assert torch.equal(getattr(state, name)[1], getattr(fresh, name)[1]), name
        assert torch.equal(getattr(state, name)[0], other[name]), name
    assert int(state.tokens[1, 0]) == 0 and not state.greedy and state.has_top_k_top_p
    state.stop(0)
    assert state.greedy and state.has_top_k_top_p and state.finished.tolist() == [True, False]
    state.start(1, **distribution | dict(top_k=0, top_p=1.0))
    assert state.greedy and not state.has_top_k_top_p


def test_the_end_tokens_of_the_last_request_are_forgotten():
    state = make_state(2, 9, 3, 4)
    settings = dict(limit=6, draft_tokens=2, temperature=0.0, top_k=0, top_p=1.0, seed=0)
    state.start(1, **settings, end_tokens=[5, 7, 9])
    state.start(1, **settings, end_tokens=[6])
    state.commit(draft_of(state, [0, 2]), verification_of(state, [[3], [7, 9, 6]]), torch.zeros(2, 4, 4))
    assert state.tokens[1, :4].tolist() == [0, 7, 9, 6] and bool(state.finished[1])
