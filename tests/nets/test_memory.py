"""Bytes that autograd keeps: counted once, followed down,
equal on tensors without values; checkpointing as reference"""

import gc

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from deffi_lab.nets.memory import (
    CudaBytes,
    Recomputed,
    cuda_peak,
    recomputed,
    saved_bytes,
    training_bytes,
)


def tower(width=6, parts=4, device="cpu"):
    torch.manual_seed(0)
    return nn.Sequential(
        *(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.Tanh())
            for _ in range(parts)
        )
    ).to(device)


def image(device="cpu"):
    return torch.randn(2, 6, 16, 16, device=device)


ONE = 2 * 6 * 16 * 16 * 4


def test_a_tower_of_convolutions_by_hand():
    with saved_bytes() as m:
        y = tower()(image())
        assert (
            m.now == 5 * ONE
        )  # the image, and each tanh's result: the next convolution's input too
        y.sum().backward()
    assert m.now == 0 and m.peak == 5 * ONE and not m.held


def test_no_gradient_keeps_nothing_and_a_dropped_graph_lets_go():
    net = tower()
    with saved_bytes() as m:
        with torch.no_grad():
            net(image())
        assert m.peak == 0
        y = net(image())
        assert m.now == 5 * ONE
        del y
        gc.collect()
        assert m.now == 0
        m.forget()
        assert m.peak == 0


def test_frees_are_followed_on_the_way_back():
    net, seen = tower(), []
    with saved_bytes() as m:
        z = image()
        for part in net:
            z = part(z)
            z.register_hook(lambda _: seen.append(m.now))
        z.sum().backward()
    assert seen == [5 * ONE, 4 * ONE, 3 * ONE, 2 * ONE]
    with saved_bytes() as m:
        y = net(image())
    y.sum().backward()  # after the context
    assert m.now == 0


def test_the_peak_stays_where_less_is_held_later():
    net = tower()
    with saved_bytes() as m:
        net(image()).sum().backward()
        net[:1](image()).sum().backward()
    assert m.peak == 5 * ONE


def test_views_and_second_users_count_once_and_weights_never():
    w, x = nn.Parameter(torch.randn(8, 8)), torch.randn(100, 8, requires_grad=True)
    with saved_bytes() as m:
        y = (x @ w.t()) + (x.view(8, 100).t().reshape(100, 8) * 0) + x * x
        y.sum().backward()
    assert 100 * 8 * 4 <= m.peak <= 2 * 100 * 8 * 4
    assert m.now == 0


def test_two_backward_passes_over_one_graph():
    with saved_bytes() as m:
        y = tower()(image()).sum()
        y.backward(retain_graph=True)
        assert m.now == 5 * ONE
        y.backward()
        assert m.now == 0


def test_tensors_without_values_count_alike():
    peaks = {}
    for device in ("cpu", "meta"):
        with saved_bytes() as m:
            tower(device=device)(image(device)).sum().backward()
        peaks[device] = m.peak
    assert peaks["cpu"] == peaks["meta"] > 0


def test_recomputing_gives_the_same_gradients_for_less():
    net, x = tower(parts=6), image()

    def gradients(f):
        net.zero_grad()
        f().square().sum().backward()
        return [p.grad.clone() for p in net.parameters()]

    plain = gradients(lambda: net(x))
    ours = gradients(lambda: recomputed(net[3:], recomputed(net[:3], x)))
    theirs = gradients(
        lambda: checkpoint(
            net[3:], checkpoint(net[:3], x, use_reentrant=False), use_reentrant=False
        )
    )
    for a, b, c in zip(plain, ours, theirs):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(b, c)
    whole = training_bytes(lambda: gradients(lambda: net(x)))
    less = training_bytes(lambda: gradients(lambda: recomputed(net[3:], recomputed(net[:3], x))))
    assert whole == 7 * ONE  # the image and six results
    assert less < 0.75 * whole


def test_wrapped_modules_predict_as_before():
    net, x = tower(), image()
    wrapped = Recomputed(net)
    with torch.no_grad():
        assert torch.equal(wrapped(x), net(x))
    assert torch.equal(wrapped(x), net(x)) and wrapped(x).requires_grad
    with saved_bytes() as m:
        y = wrapped(x)
        assert m.now <= ONE, "its input alone is kept"
        y.sum().backward()


def test_cuda_is_asked_for_by_name():
    with pytest.raises(ValueError, match="saved_bytes"), cuda_peak("cpu"):
        pass
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="no CUDA"), cuda_peak():
            pass


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_allocator_sees_what_is_saved_and_more():
    net, x = tower(width=6, device="cuda"), torch.randn(8, 6, 128, 128, device="cuda")
    step = lambda: net(x).sum().backward()
    step()
    with saved_bytes() as m:
        step()
    assert m.now == 0
    with cuda_peak() as c:
        step()
    assert isinstance(c, CudaBytes) and c.peak >= m.peak - x.nbytes and c.now < c.peak
    assert training_bytes(step, "cuda") == pytest.approx(c.peak, rel=0.5)
