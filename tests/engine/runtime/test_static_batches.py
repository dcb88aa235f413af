"""Static batches: the memory that they need is counted before any is allocated. See also test_cuda_graphs.py."""

import pytest
import torch
from doubles import FakeCapture, TableTarget, make_state

import foredraft
from foredraft.engine.drafters.none import NoDrafter
from foredraft.engine.generate import Model
from foredraft.engine.loop import step
from foredraft.engine.models import device_memory
from foredraft.engine.models.t5_cuda import T5Cuda
from foredraft.engine.models.t5_cuda_weights import load_cuda_weights
from foredraft.engine.runtime import static_batches
from foredraft.engine.runtime.cuda_graphs import CapturedSteps
from foredraft.engine.state import state_bytes
from foredraft.engine.verify_cuda import workspace_bytes
from foredraft.errors import UserError
from foredraft.kernels.core.backend_triton import is_interpreted

pytestmark = pytest.mark.skipif(not is_interpreted(), reason="needs triton's interpreter")


def held(*holders) -> int:
    """Bytes of all tensors that they hold, each memory once."""
    found = [item for holder in holders for value in vars(holder).values()
             for item in (value if isinstance(value, tuple) else (value,)) if isinstance(item, torch.Tensor)]
    return sum({item.untyped_storage().data_ptr(): item.untyped_storage().nbytes() for item in found}.values())


@pytest.mark.parametrize(("rows", "K", "V"), [(2, 0, 16), (3, 5, 500)])
def test_a_state_and_its_verifications_take_what_was_counted(rows, K, V):
    state = make_state(rows, 12, K, 7, temperature=1.0, end_token=-1, backend="triton")
    assert held(state) == state_bytes(rows, K, state.capacity, 7)
    state = make_state(rows, 12, K, V, temperature=1.0, end_token=-1, backend="triton")
    step(state, TableTarget(torch.zeros(1, V, V)), NoDrafter())
    assert held(state.workspace) == workspace_bytes(rows, K + 1, V)


@pytest.mark.full
def test_a_state_that_does_not_fit_is_refused_before_it_is_made(tiny_model_path, monkeypatch):
    model = Model(T5Cuda(load_cuda_weights(tiny_model_path, "cpu")), foredraft.load(tiny_model_path).tokenizer, "lookup",
                  tiny_model_path, "float32")
    model.graphs = CapturedSteps(FakeCapture())
    options = dict(max_new_tokens=4, draft_tokens=2, batch_size=2)
    wanted = model.generate(["w5 w9", "w7"], **options).token_ids
    needed = state_bytes(2, 2, 62, model.target.config.d_model) + workspace_bytes(2, 3, 100)
    monkeypatch.setattr(device_memory, "free_bytes", lambda device: needed - 1)
    with monkeypatch.context() as patch:
        patch.setattr(static_batches, "DecodeState", lambda **_: pytest.fail("memory was taken"))
        with pytest.raises(UserError, match="the state of 2 sequences of 62 positions and 2 drafts need .* lower batch"):
            model.generate(["w5 w9", "w7"], **options)
    monkeypatch.undo()
    assert model.generate(["w5 w9", "w7"], **options).token_ids == wanted
