"""A step never waits for the device, and does not grow."""

import pytest
import torch
from doubles import make_state
from torch.utils._python_dispatch import TorchDispatchMode

from foredraft.engine.drafters.lookup import LookupDrafter
from foredraft.engine.drafters.none import NoDrafter
from foredraft.engine.loop import step
from foredraft.engine.models.t5 import T5
from foredraft.engine.models.t5_weights import load_weights

SOURCES = [torch.tensor([5, 9, 33, 5, 9, 40, 1]), torch.tensor([7] * 70 + [1])]
WAITS = {"aten._local_scalar_dense.default", "aten.nonzero.default", "aten.item.default", "aten.masked_select.default"}


class Watch(TorchDispatchMode):
    """Fails on operations that read a value back to the host, and counts the bytes that operations return."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert str(function) not in WAITS, f"{function} waits for the device inside a round"
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.bytes += tensor.numel() * tensor.element_size()
        return out


def test_the_watch_sees_a_wait():
    with Watch(), pytest.raises(AssertionError, match="waits for the device"):
        torch.ones(2)[0].item()
    with Watch(), pytest.raises(AssertionError, match="waits for the device"):
        torch.where(torch.ones(2) > 0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("make", [NoDrafter, LookupDrafter])
def test_a_step_neither_waits_nor_grows(tiny_checkpoints, make, temperature):
    t5, drafter = T5(load_weights(tiny_checkpoints["v1.1"])), make()
    K = 0 if make is NoDrafter else 4
    state = make_state(2, 60, K, t5.config.d_model, temperature=temperature, end_token=-1)
    sizes = []
    with torch.inference_mode():
        t5.reserve(2, state.capacity, K, 71)
        drafter.admit(range(2), SOURCES, t5.admit(range(2), SOURCES))
        buffers = t5.cache.nbytes()
        for _ in range(8):
            with Watch() as watch:
                step(state, t5, drafter)
            sizes.append(watch.bytes)
    # the first step may fill buffers that later steps use again
    assert len(set(sizes[1:])) == 1, sizes
    assert t5.cache.nbytes() == buffers
    assert int(state.lengths.min()) > 8
