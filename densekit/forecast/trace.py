"""Training steps without data: what they hold in memory and which operations they run.

The step of the run itself is taken, optimiser, averaged weights and all, on tensors that have shapes and no memory
(torch's ``FakeTensor``). Nothing of a model is known here.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import warnings
import weakref
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves

from densekit.config import Config
from densekit.engine.distributed import World
from densekit.engine.plan import Plan
from densekit.model import DenseModel
from densekit.precision import Precision
from densekit.training import train_step
from densekit.types import Batch


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """A tensor without its values.

    Attributes:
        size: of each dimension.
        stride: likewise, in numbers.
        dtype: of its numbers.
    """

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @property
    def count(self) -> int:
        """How many numbers."""
        return torch.Size(self.size).numel()

    @property
    def bytes(self) -> int:
        """Their memory."""
        return self.count * self.dtype.itemsize


@dataclasses.dataclass(frozen=True, slots=True)
class Operation:
    """One call of torch's.

    Attributes:
        function: what is called.
        given: its arguments in a row, tensors as ``Shape``.
        structure: how they stand in the call.
        made: bytes of new memory that it gives back.
    """

    function: Any
    given: tuple[Any, ...]
    structure: TreeSpec
    made: int

    @property
    def tensors(self) -> list[Shape]:
        """The tensors among its arguments."""
        return [one for one in self.given if isinstance(one, Shape)]


@dataclasses.dataclass(frozen=True, slots=True)
class Trace:
    """What a training step takes.

    Attributes:
        model: bytes of the model.
        kept: bytes that stay from step to step: weights, gradients, the optimiser's state, averaged weights, a batch.
        peak: most bytes at a time; somewhat more than of a step that nobody watches, which sums gradients in place.
        operations: how often each operation runs, for each kind of step.
    """

    model: int
    kept: int
    peak: int
    operations: Sequence[Counter[Operation]]


def trace(
    config: Config, model: DenseModel, kinds: Sequence[Sequence[Batch]], world: World, precision: Precision
) -> Trace:
    """Take two steps of each kind without values; the second is what all others are like.

    Args:
        config: of the run.
        model: as it was built; it is not changed, and its values are not looked at.
        kinds: of steps: the micro-batches of each. Of images and targets the shapes count.
        world: whose device counts; it need not be there.
        precision: of the forward pass.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode  # 3 s

    mode, watch = FakeTensorMode(allow_non_fake_inputs=True), _Watch()
    with warnings.catch_warnings(), _as_before():
        warnings.simplefilter("ignore")  # of looks at the memory that there is none of
        with mode:
            hollow = _hollow(model, world.device)
            held = {id(batch): _hollow_batch(batch, world.device) for batches in kinds for batch in batches}
        watch.hold([*hollow.parameters(), *hollow.buffers()])
        weights = watch.live
        for given in held.values():
            watch.hold(tree_leaves([getattr(given, field.name) for field in dataclasses.fields(given)]))
        with mode:
            step = train_step(config.model_copy(update={"train": _eager(config)}), hollow, _ENDLESS, world, precision)
        if step.average is not None:
            watch.hold([*step.average.model.parameters(), *step.average.model.buffers()])
        watch.hold([value for state in step.optimizer.state.values() for value in state.values()])
        steps = [[held[id(batch)] for batch in batches] for batches in kinds]
        with mode, watch:
            for number, batches in enumerate([*steps, *steps]):
                if number >= len(steps):
                    watch.begin()
                step(batches, number)
    return Trace(weights, watch.live, watch.peak, watch.operations)


_ENDLESS = Plan(steps=10**6, steps_per_epoch=10**3, evaluate_every=10**6, metric="loss")
"""A timetable in which the first steps are like all others."""


def _eager(config: Config) -> Any:
    """Operation by operation, and all of the model learning, which takes the most."""
    plain = {"compile": False, "freeze_until": None, "swa": None, "norm_statistics": "shared"}
    return config.train.model_copy(update={**plain, **_average(config)})


def _average(config: Config) -> dict[str, float]:
    return {"ema": 0.999} if config.train.ema is not None or config.train.swa is not None else {}


@contextlib.contextmanager
def _as_before() -> Iterator[None]:
    """Leave torch's switches and random numbers as they were: a training step sets them."""
    mode, state = torch.get_deterministic_debug_mode(), torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        torch.set_rng_state(state)


def _empty(tensor: Tensor, device: torch.device) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)


def _hollow(model: DenseModel, device: torch.device) -> DenseModel:
    """The model with tensors of no memory."""
    known: dict[int, Any] = {id(b): _empty(b, device) for b in model.buffers()}
    known |= {id(p): nn.Parameter(_empty(p, device), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, known)


def _hollow_batch(batch: Batch, device: torch.device) -> Batch:
    """A batch with tensors of no memory; the numbers of its sizes stay on the host."""

    def hollow(value: Any) -> Any:
        if isinstance(value, Tensor):
            return _empty(value, device)
        if isinstance(value, dict):
            return {name: hollow(one) for name, one in value.items()}
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = [field.name for field in dataclasses.fields(value) if field.name != "host"]
            return dataclasses.replace(value, **{name: hollow(getattr(value, name)) for name in fields})
        return value

    made: Batch = hollow(batch)
    made.host = tuple(
        (there, batch.numbers(here))
        for here, there in zip((batch.sizes, batch.original_sizes), (made.sizes, made.original_sizes))
    )
    return made


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch types none of its methods
    """Counts the memory that lives and the operations that run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self.operations: list[Counter[Operation]] = []
        self._sizes: dict[int, int] = {}

    def begin(self) -> None:
        """Count the operations of a step; from the first one on the peak counts too."""
        if not self.operations:
            self.peak = self.live
        self.operations.append(Counter())

    def hold(self, tensors: Sequence[Any]) -> int:
        """Count tensors' memory, each once, until it is freed; how many bytes were new."""
        new = 0
        for tensor in tensors:
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage._cdata not in self._sizes:
                self._sizes[storage._cdata] = storage.nbytes()
                new += storage.nbytes()
                weakref.finalize(storage, self._free, storage._cdata)
        self.live += new
        self.peak = max(self.peak, self.live)
        return new

    def _free(self, storage: int) -> None:
        self.live -= self._sizes.pop(storage)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # more than half of all calls, and slow to go through the mode below
            return args[0].fake_device
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        made = self.hold(tree_leaves(result))
        if not self.operations:
            return result
        leaves, structure = tree_flatten((args, kwargs))
        self.operations[-1][Operation(func, tuple(map(_described, leaves)), structure, made)] += 1
        return result


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Shape(tuple(value.shape), tuple(value.stride()), value.dtype)
    return value if isinstance(value, Hashable) else None
