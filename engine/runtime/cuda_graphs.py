"""Rounds as captured CUDA graphs: one graph for each shape of a batch and bucket of its sources, replayed without the host.

The first round of a graph's kind runs eagerly and counts; it compiles the kernels and makes their buffers. The second is
captured, which executes nothing, and replayed from then on. A graph works on the memory it was captured on: each shape has a
state of its own, into which a request's fresh state is copied; all of its buckets use that one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import Tensor

from foredraft.engine.loop import step
from foredraft.engine.protocols import Drafter
from foredraft.engine.state import DecodeState

if TYPE_CHECKING:
    from foredraft.engine.models.t5_cuda import T5Cuda

# Shapes that are kept, each with a graph for every power of two of source pages that it met; the one unused for longest goes
# first.
KEPT = 16


class HostView:
    """What the host sees of a state, in pinned memory, a round late. Committed ids never change, so that a copy made while
    the next round runs is right up to its lengths."""

    def __init__(self, state: DecodeState):
        pinned = state.tokens.is_cuda
        self.tokens, self.lengths, self.finished = (
            torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
            for tensor in (state.tokens, state.lengths, state.finished))

    def copy_from(self, state: DecodeState) -> None:
        """Queue the copies; tokens first, so that no length is newer than its tokens."""
        self.tokens.copy_(state.tokens, non_blocking=True)
        self.lengths.copy_(state.lengths, non_blocking=True)
        self.finished.copy_(state.finished, non_blocking=True)


class CudaCapture:
    """Captures functions as graphs that share one pool of memory."""

    def __init__(self):
        self.pool, self.graphs = None, WeakSet()

    def __call__(self, run: Callable[[], None]) -> Any:
        # the allocator refuses a capture into a pool that no graph uses any more
        if not self.graphs:
            self.pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        # what other threads of the process ask of the device meanwhile is no part of it
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            run()
        self.graphs.add(graph)
        return graph

    def mark(self) -> Any:
        """A point in the device's work that `synchronize` waits for."""
        event = torch.cuda.Event()
        event.record()
        return event


@dataclass
class Shape:
    """A shape's state, what the host sees of it, and its graphs by source bucket: None once a round of it ran eagerly."""

    state: DecodeState
    view: HostView
    graphs: dict[int, Any] = field(default_factory=dict)


class CapturedSteps:
    """Runs the rounds of one target and drafter."""

    def __init__(self, capture: Any = None):
        self.capture = capture or CudaCapture()
        self.shapes: OrderedDict[tuple, Shape] = OrderedDict()

    def decode(self, fresh: DecodeState, target: T5Cuda, drafter: Drafter,
               after_step: Callable[[DecodeState | HostView], None] | None = None, in_step: bool = False) -> DecodeState:
        """Run `fresh` to its end; the finished state returned is this shape's, valid until its next decode.

        `after_step` sees a HostView, a round late, and the last round again at the end; with `in_step` it sees the state
        itself after every round and may change it, and the device waits for it.
        """
        # the drafter's bucket is that of the same sources
        shape, bucket = self._shape(fresh, target, drafter), target.source_bucket
        state, graphs, previous = shape.state, shape.graphs, None
        while True:
            if bucket not in graphs:
                self._round(shape, target, drafter)
                graphs[bucket] = None
            else:
                if graphs[bucket] is None:
                    graphs[bucket] = self.capture(lambda: self._round(shape, target, drafter))
                graphs[bucket].replay()
            mark = self.capture.mark()
            if in_step:
                mark.synchronize()
                if after_step is not None:
                    after_step(state)
                if bool(state.finished.all()):
                    return state
                continue
            if previous is not None:
                # the device is busy with the round just queued while the host looks at the one before
                previous.synchronize()
                if after_step is not None:
                    after_step(shape.view)
                if bool(shape.view.finished.all()):
                    break
            previous = mark
        mark.synchronize()
        if after_step is not None:
            after_step(shape.view)
        return state

    def _round(self, shape: Shape, target: T5Cuda, drafter: Drafter) -> None:
        step(shape.state, target, drafter)
        shape.view.copy_from(shape.state)

    def _shape(self, fresh: DecodeState, target: T5Cuda, drafter: Drafter) -> Shape:
        """The shape's entry, its state loaded with `fresh`."""
        # what a captured round has built in: sizes, host values of the state, and the buffers of target and drafter
        places = (target.generation, drafter.generation)
        key = (fresh.batch_size, fresh.max_draft, fresh.capacity, fresh.greedy, fresh.cuts, fresh.block, fresh.end_token, places)
        if any(known[-1] != places for known in self.shapes):
            self.shapes.clear()
        if key not in self.shapes:
            while len(self.shapes) >= KEPT:
                self.shapes.popitem(last=False)
            self.shapes[key] = Shape(fresh, HostView(fresh))
        else:
            self.shapes.move_to_end(key)
            kept = self.shapes[key].state
            for name, value in vars(fresh).items():
                if isinstance(value, Tensor):
                    getattr(kept, name).copy_(value)
        return self.shapes[key]
