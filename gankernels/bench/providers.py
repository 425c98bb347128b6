"""Who competes: stock PyTorch as it comes, at its best and compiled, and our implementations."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from gankernels import dispatch
from gankernels.bench.declaration import DOUBLE_BACKWARD, FORWARD, FORWARD_BACKWARD, STEP, Benchmark, Case, Outputs

#: The providers that are not ours; the fastest correct one is the peer that ours are held against.
PEERS = ("eager", "eager-best", "compile")

Call = Callable[[Sequence[Tensor], Sequence[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Provider:
    """One way to run a case. Several may share a name: the fastest correct one of them is the provider's row.

    Attributes:
        name: "eager", "eager-best", "compile" or "gankernels-<implementation>".
        impl: how it runs, as the row says it.
        dtype: of its floating inputs; the numbers in them are those of the row's dtype.
        channels_last: the layout of its inputs with four dimensions.
        function: ``(*inputs) -> outputs``.
        call: ``(inputs, cotangents) -> results``: what is timed, and what is checked.
        graphed: whether it brings CUDA graphs of its own, and so is not captured in another.
    """

    name: str
    impl: str
    dtype: torch.dtype
    channels_last: bool
    function: Callable[..., Outputs]
    call: Call
    graphed: bool = False


def outputs_of(function: Callable[..., Outputs], inputs: Sequence[Tensor]) -> list[Tensor]:
    """The outputs of a declaration's function as a list."""
    outputs = function(*inputs)
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def in_mode(function: Callable[..., Outputs], mode: str) -> Call:
    """``function`` as ``mode`` runs it: a function of inputs and cotangents that returns all there is to compare.

    - forward: the outputs, under no_grad.
    - forward+backward: the outputs, then the gradients of all floating inputs.
    - double backward: g, the gradient of the first floating input, then the gradients of sum(g^2) in all floating
      inputs, then those in the cotangents: in a network these come from the layers above, which the penalty also
      differentiates. Sums are in fp32 (fp64 for fp64).
    - step: what the function returns.
    """

    def forward(inputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return outputs_of(function, inputs)

    def forward_backward(inputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> list[Tensor]:
        outputs = outputs_of(function, inputs)
        gradients = _grad(*_differentiable(outputs, cotangents), _wanted(inputs))
        return [*(y.detach() for y in outputs), *gradients]

    def double_backward(inputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> list[Tensor]:
        wanted = _wanted(inputs)
        (g,) = _grad(*_differentiable(outputs_of(function, inputs), cotangents), wanted[:1], create_graph=True)
        penalty = g.to(torch.promote_types(g.dtype, torch.float32)).square().sum()
        return [g.detach(), *_grad([penalty], None, [*wanted, *cotangents])]

    def step(inputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> list[Tensor]:
        return [y.detach() for y in outputs_of(function, inputs)]

    calls = {FORWARD: forward, FORWARD_BACKWARD: forward_backward, DOUBLE_BACKWARD: double_backward}
    return calls.get(mode, step)


def peers(
    benchmark: Benchmark,
    case: Case,
    dtype: torch.dtype,
    mode: str,
    compile_modes: Sequence[str],
    has_layout: bool = True,
) -> list[Provider]:
    """Stock PyTorch as it comes (fp32, contiguous), at its best, and compiled in each of ``compile_modes``.

    ``has_layout`` is whether channels_last means anything for the inputs.
    """
    stock = partial(benchmark.stock, case)
    found = [Provider("eager", "float32", torch.float32, False, stock, in_mode(stock, mode))]
    layouts = [True, False] if has_layout else [False]
    # In fp32 the contiguous layout already competes as "eager".
    for channels_last in layouts if dtype != torch.float32 else layouts[:1]:
        impl = f"{str(dtype).removeprefix('torch.')} {'channels_last' if channels_last else 'contiguous'}"
        found.append(Provider("eager-best", impl, dtype, channels_last, stock, in_mode(stock, mode)))
    for compile_mode in compile_modes:
        call, graphed = compiled(stock, mode, compile_mode), compile_mode == "reduce-overhead"
        found.append(Provider("compile", compile_mode, dtype, has_layout, stock, call, graphed))
    return found


def ours(
    benchmark: Benchmark, case: Case, dtype: torch.dtype, mode: str, device: str, has_layout: bool = True
) -> list[Provider]:
    """Our implementations: those that the declaration names, or all that can run on ``device``."""
    found = []
    for impl in implementations(benchmark, device):
        function = partial(benchmark.ours, case, impl=impl)
        found.append(Provider(f"gankernels-{impl}", impl, dtype, has_layout, function, in_mode(function, mode)))
    return found


def implementations(benchmark: Benchmark, device: str) -> Sequence[str]:
    """The names of our contenders. The reference is a definition and competes only where nothing else can run."""
    if benchmark.impls is not None:
        return benchmark.impls
    preferred = dispatch.PREFERENCE.get(device, ("reference",))
    return [
        impl for impl in preferred if impl != "reference" and dispatch.unavailable(benchmark.op, impl, device) is None
    ] or ["reference"]


def compile_modes(device: str, quick: bool, mode: str, has_products: bool) -> tuple[str, ...]:
    """The modes of torch.compile that compete.

    On a CPU reduce-overhead is the default, and max-autotune only tunes matrix products and convolutions; not those of
    a whole step, of which it makes another compilation of minutes for a difference within the noise.
    """
    if quick:
        return ("default",)
    if device == "cuda":
        return ("default", "reduce-overhead", "max-autotune")
    return ("default", "max-autotune") if has_products and mode != STEP else ("default",)


def compiled(function: Callable[..., Outputs], mode: str, compile_mode: str) -> Call:
    """``function`` in ``mode``, compiled: its forward alone, or for what differentiates within itself, the whole.

    Needs :func:`peers_at_their_best` around its first call. A mode that brings CUDA graphs is told when a call begins.
    """
    # The graphs of "max-autotune" would stand in for the one that every contender is captured in.
    name = "max-autotune-no-cudagraphs" if compile_mode == "max-autotune" else compile_mode
    if mode in (FORWARD, FORWARD_BACKWARD):
        call = in_mode(torch.compile(function, mode=name), mode)
    else:
        call = torch.compile(in_mode(function, mode), mode=name)
    if compile_mode != "reduce-overhead":
        return call

    def call_in_own_graphs(inputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> list[Tensor]:
        torch.compiler.cudagraph_mark_step_begin()
        return call(inputs, cotangents)

    return call_in_own_graphs


@contextlib.contextmanager
def peers_at_their_best() -> Iterator[None]:
    """A fresh torch.compile that can trace ``torch.autograd.grad``, as whole penalties need, and cuDNN's own tuning."""
    config, cudnn = torch._dynamo.config, torch.backends.cudnn
    settings = {"trace_autograd_ops": True} if hasattr(config, "trace_autograd_ops") else {}
    torch._dynamo.reset()
    tuned, cudnn.benchmark = cudnn.benchmark, True
    try:
        with config.patch(settings):
            yield
    finally:
        cudnn.benchmark = tuned


def _wanted(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t for t in tensors if t.requires_grad]


def _differentiable(outputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs that depend on the inputs, and their cotangents; there is one for each floating output."""
    floating = [y for y in outputs if y.is_floating_point()]
    pairs = [(y, cotangent) for y, cotangent in zip(floating, cotangents, strict=True) if y.requires_grad]
    return [y for y, _ in pairs], [cotangent for _, cotangent in pairs]


def _grad(
    outputs: Sequence[Tensor], cotangents: Sequence[Tensor] | None, inputs: Sequence[Tensor], create_graph: bool = False
) -> tuple[Tensor, ...]:
    return torch.autograd.grad(
        outputs, inputs, cotangents, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
