"""All spectral norms of a model in one call."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from gankernels.errors import InputError
from gankernels.nn.spectral_norm import SpectralNorm, find_spectral_norms
from gankernels.ops.fold_conv_weight.kept import keep_folds
from gankernels.ops.spectral_norm import reference
from gankernels.ops.spectral_norm.op import functional


class _Call:
    """What the results of one grouped call share: their node in the autograd graph."""

    def __init__(self) -> None:
        self.spent = False  # a backward has gone through, and has freed what the node had saved


class _Entry(NamedTuple):
    """A normalised weight, and all by which it is known to be still right."""

    y: Tensor
    call: _Call
    weight: Tensor
    key: tuple[Any, ...]
    u: Tensor  # to be copied into the buffers when the entry is first served
    v: Tensor
    served: bool

    def fits(self, norm: SpectralNorm, weight: Tensor) -> bool:
        return self.weight is weight and self.key == _key(norm, weight)

    def has_graph(self, weight: Tensor) -> bool:
        """Whether gradients can flow through it, if they are asked for."""
        if not (torch.is_grad_enabled() and weight.requires_grad):
            return True
        return self.y.requires_grad and not self.call.spent


def _key(norm: SpectralNorm, weight: Tensor) -> tuple[Any, ...]:
    # In training u and v move with every call, and no value depends on what they were before.
    vectors = () if norm.training else (norm._u._version, norm._v._version, norm._u.data_ptr())
    return norm.training, weight._version, weight.data_ptr(), weight.dtype, *vectors


class SpectralNormGroup:
    """Computes every spectral-normed weight of a model in one call, once per optimizer step.

    Without a group, each access to a weight iterates and normalises it: PyTorch's meaning, and three forwards in a step
    make three iterations. With one, the first access after the weights have changed iterates and normalises all of
    them; every further forward of that step takes the results, and one grouped backward serves all of them. In eval
    mode, nothing is computed until a weight changes. With a result goes its fold, of an :class:`UpsampleConv2d` or a
    :class:`DownsampleConv2d`.

    A result is served only while its weight is the same tensor, at the same address, with the same version counter:
    what ``optimizer.step``, ``load_state_dict``, ``copy_`` and ``to`` change is computed anew. Only writes through
    ``.data`` outside a ``torch.optim`` optimizer leave no trace: call :meth:`refresh` behind them.

    Two backwards through results of the same step need ``retain_graph=True`` in the first, or a forward in between (it
    gets a graph of its own). In ``torch.compile`` and while a CUDA graph is captured, where versions cannot be
    watched, weights are normalised one by one, unless the step runs in :meth:`hold`.

    Args:
        model: whose weights. PyTorch's ``parametrizations.spectral_norm`` is replaced by ours in place, with its state;
            state names stay as they are. Spectral norms behind another parametrization of the same weight, and those
            of vectors, stay on their own.
        per_forward: iterate for every forward, as PyTorch does, to the same u and v: still one call for all, which each
            weight takes its result from once.
        out_dtype: of the normalised weights, for models that compute in 16 bits; None keeps each weight's own.
        impl: force an implementation, as in :func:`gankernels.ops.spectral_norm`.

    Raises:
        InputError: the model has no spectral-normed weight, one is in another group, or is of the older
            ``torch.nn.utils.spectral_norm``.

    Example:
        >>> model = torch.nn.Sequential(spectral_norm(torch.nn.Linear(8, 8)), spectral_norm(torch.nn.Linear(8, 1)))
        >>> group = SpectralNormGroup(model)
        >>> loss = model(torch.randn(4, 8)).mean() - model(torch.randn(4, 8)).mean()  # one iteration, one launch
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        per_forward: bool = False,
        out_dtype: torch.dtype | None = None,
        impl: str | None = None,
    ) -> None:
        self.per_forward, self.out_dtype, self.impl = per_forward, out_dtype, impl
        self._names: dict[SpectralNorm, str] = {}
        self._lists: dict[SpectralNorm, parametrize.ParametrizationList] = {}
        self._entries: dict[SpectralNorm, _Entry] = {}
        for name, norms in find_spectral_norms(model):
            norm: SpectralNorm = norms[0]  # type: ignore[assignment]
            if norm in self._names:
                continue
            if norm._group is not None:
                raise InputError(f"model: {name} is in a group already, expected none: call its remove() first")
            self._names[norm], self._lists[norm] = name, norms
        if not self._names:
            raise InputError("model: got one without spectral norms, expected at least one")
        self._join()

    def __len__(self) -> int:
        """The number of weights."""
        return len(self._names)

    @property
    def names(self) -> tuple[str, ...]:
        """The weights, as in ``model.named_parameters()`` without ``parametrizations`` and ``original``."""
        return tuple(self._names.values())

    def refresh(self) -> None:
        """Forget all results: the next forward computes them anew (and iterates, in training)."""
        self._entries.clear()

    def remove(self) -> None:
        """Take the group off the model: each weight is normalised on its own again."""
        self._unhook()
        self._entries.clear()
        for norm in self._names:
            norm._group = norm._held = None

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Compute all weights now (iterating once, in training), and use them for every forward in this block.

        For steps that ``torch.compile`` has compiled or a CUDA graph captures, and for the least memory: behind the
        block only the graph keeps a normalised weight. Nothing is checked inside: change no weight in the block.
        """
        self.refresh()
        try:
            entries = self._compute(list(self._names), self._names)
            self._commit(entries.items())
            for norm, entry in entries.items():
                norm._held = entry.y
            yield
        finally:
            for norm in self._names:
                norm._held = None

    @torch.no_grad()
    def singular_values(self, k: int = 1) -> dict[str, Tensor]:
        """The ``k`` largest singular values of every weight before normalisation, in fp32 (fp64 for fp64), descending.

        For telemetry: a first value that runs away, or a gap that closes, comes before a collapse. The first is
        ``u^T W v`` of the current u and v, the sigma that is divided by; the others come from eight steps of subspace
        iteration with k + 4 vectors, begun at v: within a few percent, and below the true ones. Weights with fewer
        singular values give fewer.

        Raises:
            InputError: ``k`` is less than 1.
        """
        if k < 1:
            raise InputError(f"k: got {k}, expected at least 1")
        values = {}
        for norm, name in self._names.items():
            weight = self._lists[norm].original
            w = reference.matrix(weight.to(torch.promote_types(weight.dtype, torch.float32)), norm.dim)
            sigma = (norm._u.to(w.dtype) @ (w @ norm._v.to(w.dtype)))[None]
            values[name] = torch.cat([sigma, reference.largest_singular_values(w, norm._v, k)[1:]]) if k > 1 else sigma
        return values

    # ---- For SpectralNorm ----

    def _serve(self, norm: SpectralNorm, weight: Tensor) -> Tensor | None:
        """The normalised weight; None where ``weight`` is not the model's own or nothing may be kept."""
        if weight is not self._lists[norm].original or not _is_watched(weight):
            return None
        if not self._is_right(norm, weight) or not self._entries[norm].has_graph(weight):
            self._update()
        entry = self._entries[norm]
        if not entry.served:
            self._commit([(norm, entry)])
            self._entries[norm] = entry._replace(served=True)
        wants_gradient = torch.is_grad_enabled() and weight.requires_grad
        # The very tensor where that is right: what is derived from it (the fold of a convolution) is kept with it.
        return entry.y if wants_gradient or not entry.y.requires_grad else entry.y.detach()

    def _is_right(self, norm: SpectralNorm, weight: Tensor) -> bool:
        """Whether the numbers of its entry, if it has one, are what a forward should see now."""
        entry = self._entries.get(norm)
        if entry is None or not entry.fits(norm, weight):
            return False
        return not (entry.served and norm.training and self.per_forward)

    def _update(self) -> None:
        """Compute what is not right any more, all in one call."""
        stale: list[SpectralNorm] = []  # to be iterated
        graphless: list[SpectralNorm] = []  # right, but for backward
        for norm, norms in self._lists.items():
            weight = norms.original
            if not _is_watched(weight):
                continue
            if not self._is_right(norm, weight):
                stale.append(norm)
            elif not self._entries[norm].has_graph(weight):
                graphless.append(norm)
        entries = self._compute([*stale, *graphless], stale)
        self._entries.update(entries)
        if not self.per_forward:
            self._commit(entries.items())
            self._entries.update({norm: entry._replace(served=True) for norm, entry in entries.items()})

    def _compute(self, norms: Sequence[SpectralNorm], to_iterate: Iterable[SpectralNorm]) -> dict[SpectralNorm, _Entry]:
        """One call for all norms that share a dtype, a device and their numbers: usually all."""
        to_iterate = set(to_iterate)
        buckets: dict[tuple[Any, ...], list[SpectralNorm]] = {}
        for norm in norms:
            weight = self._lists[norm].original
            iterations = norm.n_power_iterations if norm.training and norm in to_iterate else 0
            buckets.setdefault((weight.dtype, weight.device, iterations, norm.eps), []).append(norm)
        entries = {}
        for (_, _, iterations, eps), members in buckets.items():
            weights = [self._lists[norm].original for norm in members]
            # What is iterated but not served yet has u and v that are not in the buffers.
            waiting = [e if e is not None and not e.served else None for e in map(self._entries.get, members)]
            use = [e if iterations == 0 else None for e in waiting]
            y, u, v, _ = functional(
                weights,
                [norm._u if e is None else e.u for norm, e in zip(members, use, strict=True)],
                [norm._v if e is None else e.v for norm, e in zip(members, use, strict=True)],
                dims=[norm.dim for norm in members],
                n_power_iterations=iterations,
                eps=eps,
                out_dtype=self.out_dtype,
                impl=self.impl,
            )
            call = _Call()
            _watch_backward(y, call)
            for i, (norm, weight) in enumerate(zip(members, weights, strict=True)):
                if y[i].dim() == 4:
                    keep_folds(y[i])
                entries[norm] = _Entry(y[i], call, weight, _key(norm, weight), u[i], v[i], served=False)
        return entries

    def _commit(self, entries: Iterable[tuple[SpectralNorm, _Entry]]) -> None:
        """Write the new u and v into the buffers of the norms that were iterated."""
        pairs = [(norm, entry) for norm, entry in entries if norm.training and not entry.served]
        if pairs:
            buffers = [*(norm._u for norm, _ in pairs), *(norm._v for norm, _ in pairs)]
            with torch.no_grad():
                torch._foreach_copy_(buffers, [*(entry.u for _, entry in pairs), *(entry.v for _, entry in pairs)])

    def _forget(self, parameters: set[int]) -> None:
        for norm, norms in self._lists.items():
            if id(norms.original) in parameters:
                self._entries.pop(norm, None)

    # For copy.deepcopy and pickle of a model that holds its group: the copy's norms get a group of their own.
    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_unhook"} | {"_entries": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._join()

    def _join(self) -> None:
        for norm in self._names:
            norm._group = self
        self._unhook = _watch_optimizers(self)


# ---- Helpers ----


def _is_watched(weight: Tensor) -> bool:
    """Whether a change of the weight would be seen: not in a CUDA graph, nor in wrappers that hide the memory."""
    if type(weight) not in (Tensor, nn.Parameter) or torch._C._functorch.is_functorch_wrapped_tensor(weight):
        return False
    return not (weight.is_cuda and torch.cuda.is_current_stream_capturing())


def _watch_backward(y: Sequence[Tensor], call: _Call) -> None:
    def spend(*_: Any) -> None:
        call.spent = True

    for node in {tensor.grad_fn for tensor in y} - {None}:
        node.register_prehook(spend)  # type: ignore[union-attr]


def _watch_optimizers(group: SpectralNormGroup) -> Any:
    """Free what a step of an optimizer over the group's weights makes stale, also where it writes through ``.data``."""
    reference_ = weakref.ref(group)

    def after_step(optimizer: Optimizer, *_: Any) -> None:
        alive = reference_()
        if alive is not None:
            alive._forget({id(p) for settings in optimizer.param_groups for p in settings["params"]})

    handle = register_optimizer_step_post_hook(after_step)
    return weakref.finalize(group, handle.remove)
