from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from gankernels.bench.ceilings import Ceilings
from gankernels.bench.flops import count_flops
from gankernels.bench.profile import BETWEEN, profile
from gankernels.errors import InputError
from gankernels.ops import bias_act, conv2d, conv_transpose2d
from gankernels.ops._attention import attention
from implementations import needs_extension

#: A byte takes a nanosecond, and so do a thousand FLOPs.
CEILINGS = Ceilings("cpu", [(1e6, 1e9)], {"float32": 1e12}, launch=0.0, launch_outside=0.0)


def parts_of(function, **options):
    return {part.name: part for part in profile(function, CEILINGS, **options)}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("transposed", [False, True])
def test_convolutions_have_the_flops_that_torch_counts(transposed, groups):
    x = torch.randn(3, 4, 9, 7, requires_grad=True)
    weight = torch.randn(*((4, 6 // groups) if transposed else (6, 4 // groups)), 3, 3, requires_grad=True)
    ours, stock = (conv_transpose2d, F.conv_transpose2d) if transposed else (conv2d, F.conv2d)

    def step(function):
        function(x, weight, stride=2, padding=1, groups=groups).sum().backward()

    parts = parts_of(lambda: step(ours), repeats=1)
    kind = "grouped convolution" if groups > 1 else "convolution"
    found = [parts[f"{kind}, {part}"] for part in ("forward", "input gradient", "weight gradient")]
    assert [part.calls for part in found] == [1, 1, 1]
    forward = count_flops(lambda: stock(x, weight, stride=2, padding=1, groups=groups))
    assert [part.flops for part in found] == [forward] * 3
    assert sum(part.flops for part in found) == count_flops(lambda: step(stock)) == count_flops(lambda: step(ours))


def test_attention_has_the_flops_of_its_products():
    query, key, value = (torch.randn(2, *size, requires_grad=True) for size in ((9, 4), (6, 4), (6, 8)))
    scores, mixed = 2 * 2 * 9 * 6 * 4, 2 * 2 * 9 * 6 * 8

    def run(function):
        function(query, key, value).sum().backward()

    parts = parts_of(lambda: run(attention), repeats=1)
    assert parts["attention_forward"].flops == scores + mixed
    # the matrix, which is kept there, is made again
    stock = count_flops(lambda: run(lambda q, k, v: (q @ k.mT).softmax(2) @ v))
    assert parts["attention_backward"].flops == stock - (scores + mixed) + scores


@needs_extension
def test_parts_have_their_bytes_and_floors():
    x, bias, a = torch.randn(2, 8, 5, 5), torch.randn(8), torch.randn(16, 16)

    def step():
        bias_act(x, bias, activation="relu")
        torch.mm(a, a)
        x.view(-1).detach()

    parts = parts_of(step)
    activation, product, others = parts["bias_act_forward"], parts["matrix products"], parts["PyTorch's other ops"]
    assert activation.bytes == 4 * (2 * x.numel() + bias.numel())
    assert activation.floor_ms == pytest.approx(activation.bytes * 1e-6)
    assert product.flops == 2 * 16**3
    assert product.bytes == 4 * 2 * 16**2  # both factors are one tensor
    assert product.floor_ms == pytest.approx(product.bytes * 1e-6)
    assert (others.bytes, others.floor_ms) == (0, 0)


def test_parts_add_up_to_the_call():
    def step():
        end = torch.ones(())
        while end < 2000:
            end = end + 1

    parts = profile(step, CEILINGS, repeats=1)
    assert {part.name for part in parts} == {"PyTorch's other ops", BETWEEN}
    assert all(part.ms > 0 for part in parts)
    assert [part.ms for part in parts] == sorted((part.ms for part in parts), reverse=True)


def test_rubbish_is_refused():
    gpu = Ceilings("cuda", [(1e6, 1e9)], {"float32": 1e12}, launch=0.0, launch_outside=0.0)
    with pytest.raises(InputError, match=r"^ceilings: got those of 'cuda', expected 'cpu'$"):
        profile(lambda: None, gpu)
    with pytest.raises(InputError, match=r"^repeats: got 0, expected at least 1$"):
        profile(lambda: None, CEILINGS, repeats=0)
