"""A recorded forward: its nodes from the pictures to the logits, and what is asked of them."""

from __future__ import annotations

import collections
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.autograd.graph import Node as GraphNode
from torch.utils._pytree import tree_leaves

from gankernels.errors import InputError
from gankernels.penalties.nodes import Known, Node, Variable
from gankernels.penalties.samples import Samples


class TapeError(RuntimeError):
    """The forward cannot be followed: only double backprop differentiates it."""


@dataclass(eq=False)
class Tape:
    """A recorded forward."""

    discriminator: nn.Module
    x: Tensor  # [N, ...], requires grad
    pictures: Variable
    nodes: list[Node]
    logits: list[Tensor]
    failure: str | None  # why it could not be recorded
    outputs: list[Variable] = field(default_factory=list)  # the logits
    dtypes: frozenset[torch.dtype] = frozenset()  # that it ran in

    def outside(self) -> list[str]:
        """The nodes outside the class, each as ``"path (type): reason"``."""
        return [f"{self.where(node)}: {node.outside}" for node in self.nodes if node.outside]

    def bytes_kept(self) -> tuple[int, int, int]:
        """Of the numbers on the tape, of the cotangents that will be, and of the effective weights' gradients."""
        variables = {output for node in self.nodes for output in node.outputs if output is not None}
        weights = {id(w): w.nbytes for node in self.nodes for w in node.weights}
        numbers, cotangents = (
            (v for v in variables if v.numbers is not None),
            (v for v in variables if v.wants_cotangent),
        )
        return sum(v.bytes for v in numbers), sum(v.bytes for v in cotangents), sum(weights.values())

    def where(self, node: Node) -> str:
        """The module that ran a node, as ``"blocks.3.norm (BatchNorm2d)"``."""
        if node.module is None:
            return "the discriminator"
        path = next((path for path, module in self.discriminator.named_modules() if module is node.module), "")
        kind = type(node.module).__name__
        path = path.removeprefix("module").removeprefix(".")  # of DDP
        return f"{path or 'the discriminator'} ({kind})"


def logits_of(output: Any) -> list[Tensor]:
    """The logits in what a discriminator returns: a tensor, or a tuple, list or dict of tensors.

    Raises:
        InputError: there is none that depends on the pictures differentiably.
    """
    logits = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if not logits:
        raise InputError("discriminator: got an output that does not depend on the pictures, expected logits")
    return logits


def finish(tape: Tape, known: Known, *, with_loss: bool) -> None:
    """Find what reaches the logits, drop the rest, and mark the cotangents that the rules need.

    Args:
        known: the variables of the tensors that depend on the pictures.
        with_loss: whether the gradient of a loss will be asked for.

    Raises:
        TapeError: the logits, or what a node takes, did not come by the tape.
    """
    for tensor in tape.logits:
        variable = known.get(tensor)
        if variable is None or variable.version != tensor._version:
            raise TapeError("the logits come from a custom autograd.Function, or were written to through a view")
        variable.live = True
        variable.edge = get_gradient_edge(tensor)
        tape.outputs.append(variable)
    nodes = []
    for node in reversed(tape.nodes):
        live = [output for output in node.outputs if output is not None and output.live]
        if not live:
            continue
        nodes.append(node)
        if node.rule is None and torch.Tag.nondeterministic_seeded in node.op.tags:
            raise TapeError(f"{tape.where(node)}: {node.name} is random")
        for variable in node.variables:
            variable.live = True
    tape.nodes = nodes[::-1]
    for index, node in enumerate(tape.nodes):
        node.index = index
        for variable in node.variables:
            variable.last_use = index
    tape.dtypes = frozenset(output.dtype for node in nodes for output in node.outputs if output is not None)
    _refuse_hidden_paths(tape)
    _want_cotangents(tape, with_loss=with_loss)
    _keep_once(tape, with_loss=with_loss)


def _refuse_hidden_paths(tape: Tape) -> None:
    """Raise TapeError where an effective weight depends on the pictures by a way that the tape has not seen."""

    pictures = get_gradient_edge(tape.x).node

    def depend(weights: Iterable[Tensor]) -> bool:
        return pictures in _nodes(get_gradient_edge(weight) for weight in weights if not weight.is_leaf)

    # one walk for all, since they may share a graph
    if depend(weight for node in tape.nodes for weight in node.weights):
        node = next(node for node in tape.nodes if depend(node.weights))
        raise TapeError(f"{tape.where(node)}: an operand of {node.name} comes from a custom autograd.Function")


def _keep_once(tape: Tape, *, with_loss: bool) -> None:
    """Drop the inputs of kinks that the outputs tell as well, where these are kept for others."""
    users: collections.Counter[Variable] = collections.Counter()
    for node in tape.nodes:
        if node.rule is None:
            users.update(node.variables)
        else:
            names = node.keeps + node.rule.mixed(node, with_loss=with_loss)
            users.update(node.result if name == "result" else node[name] for name in names if name != "indices")
        users.update(output.made_of for output in node.outputs if output is not None and output.made_of is not None)
    for node in tape.nodes:
        if node.rule is not None and node.rule.either and node.keeps == ("self",) and node.result.numbers is not None:
            node.keeps = ("result",)
            users[node["self"]] -= 1
            if not users[node["self"]]:
                node["self"].numbers = None


def _want_cotangents(tape: Tape, *, with_loss: bool) -> None:
    """Mark the cotangents that the gradients of the effective weights need, and those of which sums are enough."""
    users = collections.Counter(variable for node in tape.nodes for variable in node.variables)
    made = {output for node in tape.nodes for output in node.outputs if output is not None} - set(tape.outputs)
    for node in tape.nodes:
        rule = node.rule
        if rule is not None and (not node.weights or not (with_loss or rule.mixes)):
            continue  # what is added gets nothing from the penalty
        if rule is not None and rule.adds_to is not None:
            variable = node[rule.adds_to]
            # the cotangent of a variable is the sum of what its users send
            if variable in made and users[variable] == 1 and variable.samples == Samples(0) and node["dim"] == 1:
                variable.wants_sums = True
                continue
        for output in node.outputs:
            if output is not None and output.live:
                output.wants_cotangent = True


def leaves_of(edges: Iterable[GradientEdge], behind: GraphNode | None = None) -> list[Tensor]:
    """The leaves that gradients which enter autograd's graph at ``edges`` can reach, but not through ``behind``."""
    leaves = (getattr(node, "variable", None) for node in _nodes(edges, behind) if node is not behind)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _nodes(edges: Iterable[GradientEdge], end: GraphNode | None = None) -> dict[GraphNode, None]:
    """The nodes of autograd's graph from ``edges`` on, in the order of the walk, which does not go on at ``end``."""
    seen: dict[GraphNode, None] = {}
    waiting = [edge.node for edge in edges]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen[node] = None
        if node is not end:
            waiting.extend(following for following, _ in node.next_functions if following is not None)
    return seen
