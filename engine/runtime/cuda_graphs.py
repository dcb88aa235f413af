"""Steps as captured CUDA graphs: one graph for each shape of a batch and each bucket of source lengths.

The first step of a kind runs eagerly: it compiles the kernels and allocates their buffers. The second is captured and then
replayed. A graph works on the memory that it was captured on, so each shape keeps one state, into which the state of a
request is copied; all source buckets of the shape share it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from foredraft.engine.loop import step
from foredraft.engine.protocols import CapturableTarget, Drafter
from foredraft.engine.state import DecodeState

# Shapes that are kept; the least recently used one is dropped first.
MAX_SHAPES = 16


class HostView:
    """A state's tokens, lengths and finished flags in pinned host memory, one step late. Committed tokens never change, so a
    copy made during the next step is right up to its lengths."""

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
    """Captures functions as CUDA graphs that share one memory pool."""

    def __init__(self):
        self.pool, self.graphs = None, WeakSet()

    def __call__(self, run: Callable[[], None]) -> Any:
        # the allocator refuses to capture into a pool that no graph uses any more
        if not self.graphs:
            self.pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        # other threads of the process may use the device meanwhile
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            run()
        self.graphs.add(graph)
        return graph

    def mark(self) -> Any:
        """A point in the device's queue that `synchronize` waits for."""
        event = torch.cuda.Event()
        event.record()
        return event


@dataclass
class Shape:
    """A shape's state, the host's view of it, and its graphs by source bucket: None after the eager step."""

    state: DecodeState
    view: HostView
    graphs: dict[int, Any] = field(default_factory=dict)


class CapturedSteps:
    """Runs the steps of one target and drafter."""

    def __init__(self, capture: Any = None):
        self.capture = capture or CudaCapture()
        self.shapes: OrderedDict[tuple, Shape] = OrderedDict()

    def decode(self, fresh: DecodeState, target: CapturableTarget, drafter: Drafter,
               after_step: Callable[[DecodeState | HostView], None] | None = None, in_step: bool = False) -> DecodeState:
        """Decode a batch to its end.

        Parameters
        ----------
        fresh : DecodeState
            The batch; copied into the state of its shape.
        after_step : callable
            Sees a HostView, one step late, and the last step again at the end.
        in_step : bool
            `after_step` sees the state itself after each step and may truncate it; the device waits for the host.

        Returns
        -------
        DecodeState
            The finished state of this shape, valid until the shape's next decode.
        """
        shape, bucket = self._shape(fresh, target, drafter), target.source_bucket
        state, graphs, previous = shape.state, shape.graphs, None
        while True:
            if bucket not in graphs:
                self._step(shape, target, drafter)
                graphs[bucket] = None
            else:
                if graphs[bucket] is None:
                    graphs[bucket] = self.capture(lambda: self._step(shape, target, drafter))
                graphs[bucket].replay()
            drafter.end_step()
            mark = self.capture.mark()
            if in_step:
                mark.synchronize()
                if after_step is not None:
                    after_step(state)
                if bool(state.finished.all()):
                    return state
                continue
            if previous is not None:
                # the device runs the step just queued while the host looks at the one before
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

    def _step(self, shape: Shape, target: CapturableTarget, drafter: Drafter) -> None:
        step(shape.state, target, drafter)
        shape.view.copy_from(shape.state)

    def _shape(self, fresh: DecodeState, target: CapturableTarget, drafter: Drafter) -> Shape:
        """The shape's entry, its state loaded with `fresh`."""
        # what a capture fixes: sizes, the state's host values, and the buffers of target and drafter
        buffers = (target.generation, drafter.generation)
        key = (fresh.batch_size, fresh.max_draft, fresh.capacity, fresh.greedy, fresh.has_top_k_top_p, fresh.block,
               fresh.end_token, buffers)
        if any(known[-1] != buffers for known in self.shapes):
            self.shapes.clear()
        if key not in self.shapes:
            while len(self.shapes) >= MAX_SHAPES:
                self.shapes.popitem(last=False)
            self.shapes[key] = Shape(fresh, HostView(fresh))
        else:
            self.shapes.move_to_end(key)
            kept = self.shapes[key].state
            for name, value in vars(fresh).items():
                if isinstance(value, Tensor):
                    getattr(kept, name).copy_(value)
        return self.shapes[key]
