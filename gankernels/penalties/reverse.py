"""The reverse pass over a tape's graph, with a look at the cotangents on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.autograd.graph import Node as GraphNode
from torch.autograd.graph import get_gradient_edge

from gankernels.penalties.nodes import Variable
from gankernels.penalties.tape import Tape, TapeError


def reverse(
    tape: Tape,
    seeds: list[Tensor],
    watched: Iterable[Variable],
    arrive: Callable[[Variable, Tensor], None],
    *,
    retain_graph: bool,
) -> Tensor:
    """Run autograd from the logits to the pictures.

    Args:
        seeds: the cotangents of the logits.
        watched: live variables.
        arrive: called with each of them and its cotangent, once that is complete: when all ops that take the variable
            have been passed, and before the one that made it.
        retain_graph: keep what autograd has saved for another pass.

    Returns:
        g, the cotangent of the pictures [N, ...].

    Raises:
        TapeError: g or a cotangent is not there.
    """
    waiting = set(watched)
    by_node: dict[GraphNode, list[Variable]] = {}
    for variable in waiting:
        if variable.edge is not None:
            by_node.setdefault(variable.edge.node, []).append(variable)

    def hook(variables: list[Variable]) -> Callable[[tuple[Tensor | None, ...]], None]:
        def look(cotangents: tuple[Tensor | None, ...]) -> None:
            for variable in variables:
                assert variable.edge is not None
                cotangent = cotangents[variable.edge.output_nr]
                if cotangent is not None:
                    waiting.discard(variable)
                    arrive(variable, cotangent)

        return look

    handles = [node.register_prehook(hook(variables)) for node, variables in by_node.items()]
    try:
        (g,) = torch.autograd.grad(
            tape.logits, [get_gradient_edge(tape.x)], seeds, retain_graph=retain_graph, allow_unused=True
        )
    finally:
        # a hook refers to the graph that it hangs on
        for handle in handles:
            handle.remove()
    if g is None:
        raise TapeError("the logits do not depend on the pictures")
    if waiting:
        raise TapeError("a part of the forward is not in autograd's graph")
    return g
