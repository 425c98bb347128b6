"""One forward of a discriminator over some blocks of pictures, and what to send into autograd's graph after it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from gankernels.errors import InputError
from gankernels.penalties import kinds
from gankernels.penalties.closed_form import Passes
from gankernels.penalties.recorder import ordinary_forward, record
from gankernels.penalties.samples import Rows, Samples
from gankernels.penalties.tape import Tape, leaves_of, logits_of

_log = logging.getLogger("gankernels")
_logged: set[str] = set()

METHODS = ("auto", "fused", "double_backward")

#: Gradients, and where they enter autograd's graph.
Roots = list[tuple[GradientEdge, Tensor]]

#: A factor; a tensor [] where it is known on the device alone.
Scale = Tensor | float


class Block(NamedTuple):
    """Pictures [N, ...] that go through the discriminator, and their penalty."""

    pictures: Tensor
    y: Any = None
    kind: str | None = None  # None: not penalised
    weight: float = 1.0
    target: kinds.Target = 1.0


class Run:
    """The forward of a discriminator over ``blocks``, in one batch.

    Args:
        discriminator: any module; called once, with the pictures and, if it is not None, y.
        blocks: with the same shape of pictures; those that are penalised stand beside each other.
        method: as of :func:`gankernels.gradient_penalty`.
        with_loss: whether :meth:`roots` will be given the gradient of a loss.
        cotangent: of an output, for the gradient that is penalised; None for ones, the gradient of the logits' sum.
        with_input: keep the graph of the pictures (of one block), and let the roots reach :attr:`x` too.
    """

    def __init__(
        self,
        discriminator: nn.Module,
        blocks: Sequence[Block],
        method: str,
        *,
        with_loss: bool,
        cotangent: Callable[[Tensor], Tensor] = torch.ones_like,
        with_input: bool = False,
    ) -> None:
        self.blocks, self.with_loss, self.with_input = list(blocks), with_loss, with_input
        self.sizes = [block.pictures.shape[0] for block in blocks]
        pictures = [block.pictures.detach() for block in blocks]
        if with_input:
            # a node of its own, at which every walk through the graph ends
            self.x = blocks[0].pictures.clone()
        else:
            # an inference tensor cannot require grad, a copy can
            self.x = torch.cat(pictures) if len(pictures) > 1 or pictures[0].is_inference() else pictures[0]
        penalised = [index for index, block in enumerate(blocks) if block.kind is not None]
        arguments = () if blocks[0].y is None else (torch.cat([block.y for block in blocks]),)
        self.tape: Tape | None = None
        self.each: list[Tensor] = []  # P [n] of each penalised block
        discriminator = getattr(discriminator, "_orig_mod", discriminator)
        if penalised:
            self.x.requires_grad_()
            self.penalised = sum(self.sizes[: penalised[0]]), sum(self.sizes[: penalised[-1] + 1])
            if method != "double_backward":
                self.tape = record(discriminator, self.x, *arguments, keep_mixed=with_loss)
                self.logits = self.tape.logits
            else:
                with ordinary_forward():
                    self.logits = logits_of(discriminator(self.x, *arguments))
        else:
            with torch.enable_grad():
                self.logits = logits_of(discriminator(self.x, *arguments))
        self.cotangents = [cotangent(logit) for logit in self.logits] if penalised else []
        self.way = self._choose(method) if penalised else "plain"

    def _choose(self, method: str) -> str:
        """The way to the gradients: ``"closed form"``, ``"hybrid"`` or ``"double backward"``."""
        if self.tape is None:
            return "double backward"
        if self.tape.failure is not None:
            reasons, way = [self.tape.failure], "double backward"
        else:
            reasons, way = self.tape.outside(), "hybrid"
            if self.with_loss and [logit.numel() for logit in self.logits] != [len(self.x)]:
                shapes = ", ".join(str(list(logit.shape)) for logit in self.logits)
                reasons.append(f"the loss of logits {shapes} is not a function of one number for each sample")
        if not reasons:
            return "closed form"
        reason = "; ".join(dict.fromkeys(reasons))
        if method == "fused":
            got = f"got one outside the class of the closed form ({reason})"
            raise InputError(f"discriminator: {got}, expected method='auto' for it")
        if reason not in _logged:
            _logged.add(reason)
            _log.info("gradient penalty by %s: %s", way, reason)
        return way

    def parts(self) -> list[list[Tensor]]:
        """The logits of each block and head, detached, in fp32 (fp64 for fp64)."""
        logits = [logit.detach().to(torch.promote_types(logit.dtype, torch.float32)) for logit in self.logits]
        for logit in logits:
            if logit.dim() == 0 or len(logit) != len(self.x):
                raise InputError(
                    f"discriminator: got logits {list(logit.shape)} for {len(self.x)} pictures, expected [N, ...]"
                )
        return [list(heads) for heads in zip(*(logit.split(self.sizes) for logit in logits), strict=True)]

    def means(self) -> list[Tensor]:
        """The penalty of each penalised block, once :meth:`roots` has found them."""
        return [each.mean() for each in self.each]

    def roots(self, loss_gradient: list[Tensor] | None, scale: Scale = 1.0) -> tuple[Roots, Scale]:
        """The gradients of loss + weighted penalties, times ``scale``, at edges from which autograd takes them on.

        Args:
            loss_gradient: dloss/dlogits for each head, in fp32; None without a loss.
            scale: of the gradient scaler.

        Returns:
            The roots, and a factor which their gradients have still to be multiplied by; 1 if there is a loss.
        """
        roots = [
            (get_gradient_edge(logit), (a * scale).to(logit.dtype))
            for logit, a in zip(self.logits, loss_gradient or [], strict=False)
        ]
        match self.way:
            case "plain":
                return roots, 1.0
            case "double backward":
                return self._double_backward(roots, scale), 1.0
            case "hybrid":
                return self._hybrid(roots, scale)
            case _:
                return self._closed_form(loss_gradient, scale)

    def _double_backward(self, roots: Roots, scale: Scale) -> Roots:
        total = self.penalty_with_graph()
        if total.requires_grad:
            roots.append((get_gradient_edge(total), torch.ones_like(total) * scale))
        return roots

    def penalty_with_graph(self) -> Tensor:
        """The sum of the weighted penalties, by plain double backprop."""
        (g,) = torch.autograd.grad(self.logits, self.x, self._seeds(1.0), create_graph=True)
        self.each, total = [], torch.zeros((), device=g.device)
        for block, part in zip(self.blocks, g.split(self.sizes), strict=True):
            if block.kind is not None:
                each = kinds.values(block.kind, part, block.target)
                total = total + block.weight * each.mean()
                self.each.append(each.detach())
        return total

    def _closed_form(self, loss_gradient: list[Tensor] | None, scale: Scale) -> tuple[Roots, Scale]:
        assert self.tape is not None
        start, stop = self.penalised
        rows = Rows(start, stop - start, len(self.x))
        scales, of_others = self._scales_of_seeds(self.tape, scale), None
        if loss_gradient is not None and self._others_apart(rows, attempts=len(scales)):
            of_others = loss_gradient[0].reshape(-1) * scale
        passes = Passes(self.tape, rows, apart=of_others is not None)
        t, seed, size = self._direction(passes, scales, of_others, retain_graph=False)
        if loss_gradient is None:
            passes.tangents(t)
            return _at_weights(passes), (1.0 if size is None else size) / seed
        share = scale / seed
        # [1], not a scalar: a product with it is in fp32
        mixing = None if size is None else (size * share).reshape(1)
        if mixing is None and (isinstance(share, Tensor) or share != 1):
            t = t * share
        passes.tangents(t, loss_gradient[0].reshape(-1) * share, mixing)
        return _at_weights(passes), 1.0

    def _others_apart(self, rows: Rows, attempts: int) -> bool:
        """Whether to take the gradients of samples without a penalty in the reverse pass, since that saves memory."""
        assert self.tape is not None
        if rows.others() is None or attempts > 1:
            return False  # nobody to take apart; or a second attempt would find the numbers gone
        numbers, cotangents, gradients = self.tape.bytes_kept()
        # Together, the peak is between the passes. Apart, it is there or near the logits, where the gradients of the
        # widest layers come before anything goes; and a gradient is there twice while its second part is added.
        together = numbers + cotangents
        return max(numbers, together * rows.count / rows.total) + 2 * gradients < together

    def _hybrid(self, roots: Roots, scale: Scale) -> tuple[Roots, Scale]:
        assert self.tape is not None
        passes = Passes(self.tape, Rows(0, len(self.x), len(self.x)), with_input=self.with_input)
        scales = self._scales_of_seeds(self.tape, scale)
        t, seed, size = self._direction(passes, scales, None, retain_graph=True)
        passes.tangents(t)
        factor, second = (1.0 if size is None else size) / seed, passes.sources + _at_weights(passes)
        if not self.with_loss:
            return second, factor
        return roots + [(edge, gradient * (factor * scale)) for edge, gradient in second], 1.0

    def _direction(
        self, passes: Passes, scales: list[Scale], of_others: Tensor | None, *, retain_graph: bool
    ) -> tuple[Tensor, Scale, Tensor | None]:
        """The reverse pass, the penalties, and the direction ``w dP/dg`` [rows, ...] of the tangent pass.

        Args:
            scales: of the seeds, as :meth:`_scales_of_seeds` gives them.
            of_others: the loss's gradient [N] in the logits, from which the reverse pass starts where there is no
                penalty; None starts it as where there is one.

        Returns:
            The direction; the seed that the cotangents are multiplied by; and what the direction was divided by: its
            largest magnitude, if the forward ran in 16 bits, else None.
        """
        for index, seed in enumerate(scales):
            last = index == len(scales) - 1
            g = passes.reverse(self._seeds(seed, of_others), retain_graph=retain_graph or not last)
            if last or g.isfinite().all():
                break
        g = g if g.dim() > 1 else g.unsqueeze(1)
        dims, wide = tuple(range(1, g.dim())), torch.promote_types(g.dtype, torch.float32)
        norms = torch.linalg.vector_norm(g, dim=dims, dtype=wide) / seed  # [N]
        factors = torch.zeros_like(norms)  # the direction is factors_i g_i
        for block, part, factor in zip(self.blocks, norms.split(self.sizes), factors.split(self.sizes), strict=True):
            if block.kind is not None:
                each, slope = kinds.of_norms(block.kind, part, block.target)
                self.each.append(each)
                torch.mul(slope / seed, block.weight / len(part), out=factor)
        g, factors, size = passes.rows.of(g, Samples(0)), passes.rows.of(factors, Samples(0)), None
        if passes.tape.dtypes & {torch.bfloat16, torch.float16}:
            largest = (torch.linalg.vector_norm(g, math.inf, dim=dims, dtype=wide) * factors).abs().amax()
            size = torch.where(largest > 0, largest, 1.0)
            factors = factors / size
        t = (g * factors.view(-1, *[1] * len(dims))).reshape(-1, *self.x.shape[1:])
        return t.to(self.x.dtype), seed, size

    def _scales_of_seeds(self, tape: Tape, scale: Scale) -> list[Scale]:
        """What to multiply the seeds of the reverse pass by; the next one, if with the last something overflows."""
        if torch.float16 not in tape.dtypes:
            return [1.0]
        if isinstance(scale, Tensor):
            # what a scaler found room for, spread over the samples as a mean does
            spread = 2.0 ** -math.ceil(math.log2(len(self.x)))
            return [(scale * spread).to(self.logits[0].dtype).float()]
        # powers of two that leave room on both sides
        return [2.0**8, 1.0, 2.0**-8]

    def _seeds(self, scale: Scale, of_others: Tensor | None = None) -> list[Tensor]:
        """The cotangents of the logits: of sum_i D(x_i), over the penalised samples where samples may be mixed."""
        seeds = [cotangent * scale for cotangent in self.cotangents]
        start, stop = self.penalised
        if of_others is not None:
            (seed,) = seeds
            parts = of_others[:start], seed.flatten()[start:stop], of_others[stop:]
            seeds = [torch.cat(parts).to(seed.dtype).view_as(seed)]
        elif self.way != "closed form":
            for tensor in seeds:
                if tensor.dim() and len(tensor) == len(self.x):
                    tensor[:start] = 0
                    tensor[stop:] = 0
        return seeds

    def leaves(self, roots: Roots) -> list[Tensor]:
        """The parameters that the roots reach."""
        return leaves_of(
            (edge for edge, _ in roots), behind=get_gradient_edge(self.x).node if self.x.requires_grad else None
        )


def _at_weights(passes: Passes) -> Roots:
    with torch.enable_grad():
        # behind a view of it, so that a parameter takes the gradient as its own instead of a copy
        weights = [(w.view_as(w) if w.is_leaf else w, gradient) for w, gradient in passes.gradients.values()]
    return [(get_gradient_edge(weight), gradient) for weight, gradient in weights]
