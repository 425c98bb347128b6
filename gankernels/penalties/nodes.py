"""The parts of a tape: tensors that depend on the pictures, and the ops between them."""

from __future__ import annotations

import functools
import math
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

if TYPE_CHECKING:
    from gankernels.penalties.rules import Rule
    from gankernels.penalties.samples import Samples


@dataclass(eq=False, slots=True)
class Variable:
    """A tensor of the forward that depends on the pictures."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    version: int  # the tensor's, as long as nobody else writes to it
    samples: Samples | None = None  # None: they are mixed
    edge: GradientEdge | None = None  # where its cotangent passes by
    numbers: Tensor | None = None  # if a rule asks for them
    numbers_version: int = 0
    made_of: Variable | None = None  # from whose numbers its own are cheap to make
    remade: bool = False  # instead of being kept, they are made when the tangents get there
    wants_cotangent: bool = False
    wants_sums: bool = False  # of the cotangent, over all but samples and channels
    live: bool = False  # reaches the logits
    last_use: int = -1  # the index of the last node that takes it

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def remake(self) -> bool:
        """Whether the numbers need not be kept, since they can be made again of what is kept in any case."""
        if self.made_of is not None and self.made_of.numbers is not None:
            self.remade = True
        return self.remade


@dataclass(eq=False, slots=True)
class Node:
    """One op of the forward. In its arguments, tensors that depend on the pictures are :class:`Variable`."""

    op: torch._ops.OpOverload
    arguments: dict[str, Any]
    module: nn.Module | None
    in_place: bool = False  # ``op`` is the form that does not write to its arguments
    variables: list[Variable] = field(default_factory=list)
    outputs: list[Variable | None] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    constants: list[tuple[Tensor, int]] = field(default_factory=list)  # with their versions
    indices: Tensor | None = None  # a second output of integers, if the rule asks for it
    index: int = 0  # on the tape
    rule: Rule | None = None
    outside: str | None = None  # why it is outside the class of the closed form
    keeps: tuple[str, ...] = ()  # the arguments, or "result" or "indices", whose numbers the rule needs

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    @property
    def name(self) -> str:
        return signature(self.op).name

    @property
    def result(self) -> Variable:
        first = self.outputs[0]
        assert first is not None
        return first


class Signature(NamedTuple):
    """What is asked of a schema; torch makes a new object of it at each look."""

    name: str
    positional: tuple[str, ...]
    keyword_only: tuple[str, ...]
    defaults: dict[str, Any]
    written: frozenset[str]
    aten: bool
    is_view: bool


@functools.cache
def signature(op: torch._ops.OpOverload) -> Signature:
    arguments = op._schema.arguments
    return Signature(
        op._schema.name,
        tuple(a.name for a in arguments if not a.kwarg_only),
        tuple(a.name for a in arguments if a.kwarg_only),
        {a.name: a.default_value for a in arguments},
        frozenset(a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write),
        op.namespace == "aten",
        op.is_view,
    )


class Known:
    """The variables of the tensors that depend on the pictures, for as long as these live."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[Tensor], Variable]] = {}

    def __setitem__(self, tensor: Tensor, variable: Variable) -> None:
        self._entries[id(tensor)] = weakref.ref(tensor), variable

    def get(self, tensor: Tensor) -> Variable | None:
        entry = self._entries.get(id(tensor))
        # another tensor may have come to lie where one has died
        return entry[1] if entry is not None and entry[0]() is tensor else None


def call(op: torch._ops.OpOverload, arguments: dict[str, Any]) -> Any:
    """Run ``op`` on arguments given by their names in its schema."""
    names = signature(op)
    named = {name: arguments[name] for name in names.keyword_only}
    return op(*(arguments[name] for name in names.positional), **named)


def depends(value: Any) -> bool:
    """Is this argument of a node, or an item of it, a variable?"""
    return isinstance(value, Variable) or (isinstance(value, list) and any(isinstance(v, Variable) for v in value))
