"""Records what a discriminator does to its pictures, op by op, in one ordinary forward.

The recorder lies below autograd and autocast: it sees the ATen ops and the registered ones that run, with tensors in
the dtypes they run in. It keeps no numbers of its own but those that a rule of :mod:`gankernels.penalties.rules` asks
for. Whatever does not depend on the pictures is left to autograd: an operand that requires grad and does not depend on
them is an *effective weight* (a parameter, or a parameter behind spectral norm, a cast, a scale, an embedding of
labels).
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils._python_dispatch import TorchDispatchMode

from gankernels.penalties.nodes import Known, Node, Variable, signature
from gankernels.penalties.rules import find_rule
from gankernels.penalties.samples import Samples
from gankernels.penalties.tape import Tape, TapeError, finish, logits_of


@functools.cache
def _functional(op: torch._ops.OpOverload) -> torch._ops.OpOverload | None:
    """What ``op`` computes without writing to its arguments; None if there is no such op."""
    if not op._schema.is_mutable:
        return op
    namespace, _, name = op._schema.name.partition("::")
    if name.startswith("_") or not name.endswith("_"):
        # Batch norm writes to its running statistics; it is recorded as it is.
        return None if "out" in signature(op).written or name.startswith("__") else op
    packet = getattr(getattr(torch.ops, namespace), name[:-1], None)
    return getattr(packet, op._overloadname, None)


class _Recorder(TorchDispatchMode):
    def __init__(self, x: Tensor, modules: list[nn.Module], *, keep_mixed: bool) -> None:
        super().__init__()
        self.modules, self.keep_mixed = modules, keep_mixed
        self.nodes: list[Node] = []
        self.failure: str | None = None
        self.pictures = Variable(tuple(x.shape), x.dtype, x._version, Samples(0), get_gradient_edge(x))
        self.known = Known()
        self.known[x] = self.pictures

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # torch would import the compiler for it, in seconds; the public functions keep it out already
        return False

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # autograd is off below a custom Function and in what the user detaches, and below every op that is registered
        # with torch.library, which is one node
        followed = torch.is_grad_enabled() or not signature(op).aten
        if self.failure is not None or not followed or op in _NO_DERIVATIVE:
            return op(*args, **kwargs)
        try:
            node, tensors = self.bind(op, args, kwargs)
        except TapeError as error:
            where = type(self.modules[-1]).__name__ if self.modules else "the discriminator"
            self.failure = f"{where}: {error}"
            return op(*args, **kwargs)
        if node is None:
            return op(*args, **kwargs)
        kept = self.keep_inputs_of(node, tensors)
        if node.in_place and isinstance(node["self"], Variable) and node["self"].numbers is not None:
            node["self"].numbers = node["self"].numbers.clone()
            node["self"].numbers_version = 0
        results = op(*args, **kwargs)
        self.add_outputs(node, results)
        if any(node.outputs):
            self.nodes.append(node)
        else:
            for variable in kept:
                variable.numbers = None
        return results

    def bind(self, op: Any, args: Any, kwargs: Any) -> tuple[Node | None, list[tuple[Variable, Tensor]]]:
        """The node of a call, if it depends on the pictures, and the tensors of its variables."""
        tensors: list[tuple[Variable, Tensor]] = []
        constants: list[tuple[str, Tensor]] = []

        names = signature(op)
        arguments, given = names.defaults.copy(), dict(zip(names.positional, args, strict=False))
        given.update(kwargs)
        for name, value in given.items():
            plain = type(value) in _PLAIN
            arguments[name] = value if plain else self.operand(name, value, tensors, constants)
        if not tensors:
            return None, []
        for variable, tensor in tensors:
            if tensor._version != variable.version:
                raise TapeError(f"an input of {names.name} was written to through another view of its memory")
            if variable.edge is None:
                variable.edge = get_gradient_edge(tensor)
        functional = _functional(op)
        if functional is None:
            raise TapeError(f"{names.name} has no form that does not write to its arguments")
        if functional is not op:
            if not isinstance(arguments["self"], Variable) and given["self"]._is_view():
                raise TapeError(f"{names.name} writes what depends on the pictures into a view")
            arguments = signature(functional).defaults | arguments
        node = Node(functional, arguments, self.modules[-1] if self.modules else None, functional is not op)
        node.variables = list(dict.fromkeys(variable for variable, _ in tensors))
        node.weights = [t for _, t in constants if t.requires_grad]
        # an op may move its running statistics
        node.constants = [(t, t._version) for name, t in constants if not name.startswith("running")]
        return node, tensors

    # A method, and no function inside bind: one that calls itself is a cycle, which keeps its tensors alive.
    def operand(
        self, name: str, value: Any, tensors: list[tuple[Variable, Tensor]], constants: list[tuple[str, Tensor]]
    ) -> Any:
        """An argument with variables for tensors; both lists are extended by what is in it."""
        if isinstance(value, (list, tuple)):
            if any(isinstance(item, Tensor) for item in value):
                return [self.operand(name, item, tensors, constants) for item in value]
            return list(value)
        if not isinstance(value, Tensor):
            return value
        variable = self.known.get(value) if value.requires_grad else None
        if variable is None:
            constants.append((name, value))
            return value
        tensors.append((variable, value))
        return variable

    def keep_inputs_of(self, node: Node, tensors: list[tuple[Variable, Tensor]]) -> list[Variable]:
        """Choose the node's rule, and keep the numbers of those inputs that it needs."""
        node.rule, node.outside = find_rule(node)
        if node.rule is None:
            wanted = node.variables
        else:
            node.keeps = node.rule.kept(node)
            names = node.keeps + node.rule.mixed(node, with_loss=self.keep_mixed)
            wanted = [node[name] for name in names if name in node.arguments]
        kept = []
        for variable, tensor in tensors:
            if variable in wanted and variable.numbers is None and not variable.remake():
                variable.numbers, variable.numbers_version = tensor, tensor._version
                kept.append(variable)
        return kept

    def add_outputs(self, node: Node, results: Any) -> None:
        """Enter the outputs; integers, and whatever does not require grad, turn out to be constants when used."""
        keeps = node.keeps
        # autograd counts a write, and lets a view share the count of its base, after this call
        shares = node.in_place or signature(node.op).is_view
        version = node.variables[0].version + node.in_place
        for tensor in results if isinstance(results, (list, tuple)) else [results]:
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                node.outputs.append(None)
                if "indices" in keeps and isinstance(tensor, Tensor):
                    node.indices = tensor
                continue
            variable = Variable(tuple(tensor.shape), tensor.dtype, version if shares else tensor._version)
            if node.rule is not None and node.rule.remade:
                (variable.made_of,) = node.variables
            node.outputs.append(variable)
            self.known[tensor] = variable
            if "result" in keeps and len(node.outputs) == 1:
                variable.numbers, variable.numbers_version = tensor, variable.version
        if node.rule is None or not any(node.outputs) or any(v.samples is None for v in node.variables):
            return
        for output in filter(None, node.outputs):
            if self.pictures.shape[0] == 1:
                output.samples = Samples(0, *output.shape[:1])  # all of it belongs to the one sample
            else:
                output.samples = node.rule.samples(node)
            if output.samples is None:
                node.outside = f"{node.name} mixes samples"


#: Arguments in which no tensor is.
_PLAIN = frozenset([type(None), bool, int, float, str, torch.dtype])

_ATEN = torch.ops.aten
#: What has no derivative, or is autograd's own bookkeeping.
_NO_DERIVATIVE = frozenset(
    [
        _ATEN.detach.default,
        _ATEN.empty_like.default,
        _ATEN.zeros_like.default,
        _ATEN.ones_like.default,
        _ATEN.full_like.default,
        _ATEN.rand_like.default,
        _ATEN.randn_like.default,
        _ATEN.new_empty.default,
        _ATEN.new_zeros.default,
        _ATEN.new_ones.default,
        _ATEN.new_full.default,
    ]
)


@contextlib.contextmanager
def _following(modules: list[nn.Module]) -> Iterator[None]:
    """Keep the stack of the modules whose forward runs in this thread."""
    thread = threading.get_ident()

    def enter(module: nn.Module, args: Any) -> None:
        if threading.get_ident() == thread:
            modules.append(module)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() == thread and modules:
            modules.pop()

    hooks = [
        nn.modules.module.register_module_forward_pre_hook(enter),
        nn.modules.module.register_module_forward_hook(leave, always_call=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def ordinary_forward() -> Iterator[None]:
    """Run a discriminator so that it can be differentiated twice: as eager code, attention by matrix products."""
    with contextlib.ExitStack() as stack:
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        # the fused kernels of attention have no second derivative
        stack.enter_context(torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH))
        stack.enter_context(torch.enable_grad())
        yield


def record(discriminator: nn.Module, x: Tensor, *arguments: Any, keep_mixed: bool) -> Tape:
    """Run ``discriminator(x, *arguments)`` once and return the tape of it.

    Args:
        x: the pictures [N, ...], which require grad.
        keep_mixed: keep the inputs of weighted ops, which the gradient of a loss needs.
    """
    modules: list[nn.Module] = []
    recorder = _Recorder(x, modules, keep_mixed=keep_mixed)
    with ordinary_forward(), _following(modules), recorder:
        output = discriminator(x, *arguments)
    tape = Tape(discriminator, x, recorder.pictures, recorder.nodes, logits_of(output), recorder.failure)
    if tape.failure is None:
        try:
            finish(tape, recorder.known, with_loss=keep_mixed)
        except TapeError as error:
            tape.failure = str(error)
    return tape
