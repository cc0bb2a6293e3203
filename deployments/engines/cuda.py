"""The CUDA engine: a graph for every bucket of batch and length, and two batches in flight."""

import logging
import threading
from collections import Counter
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils import convert_conv2d_weight_memory_format

from configs.settings import Precision
from deployments.engines.buckets import Shape, bucket_shapes, fill
from deployments.errors import ModelLost

logger = logging.getLogger("ray.serve")

MAX_GRAPHS: Final = 256  # for each lane; more than there are buckets of batch and length for any limits
MAX_TRIES: Final = 3  # of a capture for which there was too little memory: there may be more of it later
_WARM_UPS: Final = 3  # before a capture, as in torch.cuda.make_graphed_callables
_DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# One capture in the process at a time, as torch requires. Other threads may launch, copy and allocate
# meanwhile (capture mode thread_local), but a synchronisation of the whole device breaks a capture.
_capturing = threading.Lock()


class CudaEngine:
    """The module on the GPU, with `concurrency` lanes: while one batch computes, the next is copied.

    Inputs are padded to the shapes of `buckets.py`, and each shape's forward is captured in a CUDA graph at
    its first use: a forward is hundreds of kernels of microseconds, which Python launches more slowly than
    the GPU runs them. Without one run shapes beyond the buckets or `max_graphs`, and those whose capture
    failed.
    """

    name = "torch-cuda"
    concurrency = 2
    buckets = True

    def __init__(
        self,
        module: torch.nn.Module,
        *,
        precision: Precision,
        max_tokens: int | None = None,
        max_graphs: int = MAX_GRAPHS,
    ) -> None:
        """`max_tokens` is the network's limit in tokens; with None tokens are not padded in length."""
        self.precision: str = native_precision(precision)
        # Of the whole process. cuDNN's attention, which torch prefers on Hopper and Blackwell, builds a plan
        # for each shape in each thread, some 0.4 s, and gave wrong values (pytorch issues 196678, 193893).
        torch.backends.cuda.enable_cudnn_sdp(False)
        if self.precision == "fp32":
            # Of the whole process. Otherwise convolutions run in TF32, with 10 bits of mantissa.
            torch.backends.cudnn.allow_tf32 = False
        with _capturing:
            self.module = module.eval().to("cuda", _DTYPES[self.precision])
            # Pixels come with their channels last; weights in another order would be turned in each call.
            convert_conv2d_weight_memory_format(self.module, torch.channels_last)
            torch.cuda.synchronize()  # the lanes' streams do not wait for this one
        # First in, first out: calls one after the other warm up every lane.
        self._lanes = SimpleQueue[_Lane]()
        for _ in range(self.concurrency):
            self._lanes.put(_Lane(self.module, max_tokens, max_graphs))

    def __call__(self, *inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Raises ModelLost once the device does nothing more for this process, as after a kernel's fault."""
        lane = self._lanes.get()
        try:
            return lane.run(inputs)
        except RuntimeError as error:  # torch's own errors, out of memory among them, are of this class
            if lane.is_lost():
                raise ModelLost(f"the GPU can no longer be used: {error}") from error
            raise
        finally:
            self._lanes.put(lane)

    def warmed_up(self) -> None:
        """It holds nothing that only the first calls need."""


class _Lane:
    """A stream with graphs of its own, for one call at a time: graphs that share memory must not overlap."""

    def __init__(self, module: torch.nn.Module, max_tokens: int | None, max_graphs: int) -> None:
        self._module = module
        self._max_tokens = max_tokens
        self._max_graphs = max_graphs
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[tuple[Shape, ...], _Graph | None] = {}  # None: it failed
        self._short_of_memory = Counter[tuple[Shape, ...]]()
        # None goes before all do, not even one that failed: with it torch frees the stream's cuBLAS
        # workspace, which the others go on writing to (pytorch issue 193402).
        self._captures: list[torch.cuda.CUDAGraph] = []
        self._full = False

    def run(self, inputs: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            shapes = bucket_shapes(inputs, self._max_tokens) if self._max_graphs else None
            graph = self._graph(shapes, inputs) if shapes else None
            if graph:
                return graph.run(inputs)
            tensors = [torch.from_numpy(np.require(x, requirements="W")).cuda() for x in inputs]
            output: NDArray[np.float32] = self._module(*tensors).float().cpu().numpy()
            return output

    def is_lost(self) -> bool:
        """Whether nothing can run here any more: such an error is every later call's too."""
        try:
            self._stream.synchronize()
        except RuntimeError:
            return True
        return False

    def _graph(self, shapes: tuple[Shape, ...], inputs: Sequence[NDArray[Any]]) -> "_Graph | None":
        if shapes in self._graphs:
            return self._graphs[shapes]
        if len(self._graphs) >= self._max_graphs:
            if not self._full:
                logger.warning("%s CUDA graphs are kept; further shapes run without one", self._max_graphs)
            self._full = True
            return None
        dtypes = [array.dtype for array in inputs]
        try:
            with _capturing:
                graph = _Graph(self._module, shapes, dtypes, self._captures, self._pool, self._stream)
        except torch.OutOfMemoryError:
            self._short_of_memory[shapes] += 1
            if self._short_of_memory[shapes] < MAX_TRIES:
                return None
            logger.warning("no CUDA graph for inputs of %s: too little memory", shapes)
            graph = None
        except RuntimeError:
            logger.warning("no CUDA graph for inputs of %s: they run without one", shapes, exc_info=True)
            graph = None
            self._pool = torch.cuda.graph_pool_handle()  # the former may still count as being captured into
        self._graphs[shapes] = graph
        return graph


class _Graph:
    """One shape's forward, captured, between pinned memory for its inputs and for its output."""

    def __init__(
        self,
        module: torch.nn.Module,
        shapes: Sequence[Shape],
        dtypes: Sequence[np.dtype[Any]],
        captures: list[torch.cuda.CUDAGraph],
        pool: Any,
        stream: torch.cuda.Stream,
    ) -> None:
        """The capture is added to `captures` before it begins. `stream` is the current one: the warm-up
        prepares the workspaces that the capture finds there."""
        self._staged = [_example(*each) for each in zip(shapes, dtypes, strict=True)]
        self._inputs = [staged.cuda() for staged in self._staged]
        for _ in range(_WARM_UPS):
            output = module(*self._inputs)
        # Not in the pool, like the inputs: so no replay of another graph writes over them.
        self._output = torch.empty_like(output, dtype=torch.float32)
        self._result = torch.empty(output.shape, dtype=torch.float32, pin_memory=True)
        del output
        self._captured = torch.cuda.CUDAGraph()
        captures.append(self._captured)
        with torch.cuda.graph(self._captured, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self._output.copy_(module(*self._inputs))
        # Blocking: a wait that spins would take a core from the threads that decode and tokenise.
        self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]

    def run(self, arrays: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """The rows of `arrays` alone; the current stream must be the captured one."""
        n = len(arrays[0])
        for array, staged, tensor in zip(arrays, self._staged, self._inputs, strict=True):
            fill(staged.numpy(), array)
            tensor[:n].copy_(staged[:n], non_blocking=True)
        self._captured.replay()
        self._result[:n].copy_(self._output[:n], non_blocking=True)
        self._done.record()
        self._done.synchronize()
        return self._result[:n].numpy().copy()


def _example(shape: Shape, dtype: np.dtype[Any]) -> torch.Tensor:
    """Pinned ones, which are pixels, ids and a mask alike; tokens end in one of padding.

    transformers, in the starter's BERT, leaves out a mask that hides nothing, except while capturing: without
    padding the warm-up would run other kernels than the capture.
    """
    example = torch.ones(shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype, pin_memory=True)
    if len(shape) == 2:
        example[:, -1] = 0
    return example


def native_precision(asked: Precision) -> str:
    """What runs: fp16 in place of bf16 where this GPU does not compute that natively; torch emulates it."""
    if asked not in ("auto", "bf16"):
        return asked
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def notes(asked: Precision) -> tuple[str, ...]:
    """What an operator should know of this precision on this GPU."""
    if asked == "bf16" and native_precision(asked) != "bf16":
        return ("precision bf16: this GPU has no instructions for it, fp16 runs in its place",)
    return ()
