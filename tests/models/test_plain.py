"""Fast paths give way to whatever others put on, in or around a layer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import pytest
import torch
from golden import TINY, weights
from timm import create_model
from timm.layers import QuickGELU
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_full_backward_pre_hook
from torch.nn.utils import parametrizations, prune

from cvt_dense import CvTTrunk
from cvt_dense.models import folding
from cvt_dense.models.cvt import layers
from cvt_dense.models.plain import is_foldable, is_idle, is_plain, is_plain_linear

SMALL = TINY | dict(depths=(1, 1, 2))


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Turns the fast paths off until the test ends."""

    def turn_off() -> None:
        monkeypatch.setattr(folding, 'is_foldable', lambda conv, norm: False)
        monkeypatch.setattr(layers.QuickGELUMlp, '_is_plain', lambda self: False)

    return turn_off


def build(kind: str, training: bool = False) -> nn.Module:
    model = CvTTrunk(SMALL) if kind == 'trunk' else create_model('cvt_13', arch=SMALL, num_classes=5)
    model.load_state_dict(weights(model))  # fresh ones would hide what is left out
    model.train(training)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def compute(model: nn.Module) -> torch.Tensor:
    outputs = model(torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(1)))
    return outputs if isinstance(outputs, torch.Tensor) else torch.cat([m.flatten() for m in outputs[0]])


def leaves(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, module) for name, module in model.named_modules() if not list(module.children()))


def calls(model: nn.Module, register: str) -> tuple[dict[str, int], torch.Tensor]:
    """How often each leaf's hook is called in a forward and a backward pass, set on one leaf at a time; an output."""
    counts = {}
    for name, module in leaves(model):
        counts[name] = 0

        def count(*_: Any, name: str = name) -> None:
            counts[name] += 1

        with getattr(module, register)(count):
            output = compute(model)
            output.sum().backward()
    return counts, output.detach()


@pytest.mark.parametrize('kind', ['trunk', 'timm'])
@pytest.mark.parametrize(
    'register',
    [
        'register_forward_hook',
        'register_forward_pre_hook',
        'register_full_backward_hook',
        'register_full_backward_pre_hook',
    ],
)
def test_a_hook_on_any_layer_is_called(kind: str, register: str, slowly: Callable[[], None]) -> None:
    fast, fast_output = calls(build(kind), register)
    plain = compute(build(kind)).detach()
    slowly()
    slow, slow_output = calls(build(kind), register)
    assert fast == slow
    assert all(fast.values())
    torch.testing.assert_close(fast_output, slow_output, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(plain, slow_output, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('register', [register_module_forward_hook, register_module_full_backward_pre_hook])
def test_a_hook_for_all_modules_is_called_for_each_layer(register: Callable) -> None:
    model = build('trunk')
    seen = set()
    with register(lambda module, *_: seen.add(module)):
        compute(model).sum().backward()
    assert {name for name, module in leaves(model) if module not in seen} == set()


def test_a_hook_may_change_what_a_layer_returns() -> None:
    for name, module in leaves(build('trunk')):
        model = build('trunk')
        expected = compute(model)
        model.get_submodule(name).register_forward_hook(lambda module, inputs, output: output + output**2)
        assert not torch.allclose(compute(model), expected, atol=1e-3), (name, module)


def test_a_forward_of_its_own_is_called() -> None:
    """As ``accelerate`` gives it to modules that it moves."""
    for name, _ in leaves(build('trunk')):
        model = build('trunk')
        expected = compute(model)
        layer = model.get_submodule(name)
        layer.forward = MethodType(lambda self, x: type(self).forward(self, x).exp(), layer)
        assert not torch.allclose(compute(model), expected, atol=1e-3), name


def layers_with_weights(model: nn.Module) -> list[str]:
    kinds = nn.Linear, nn.Conv2d
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


def train_two_steps(model: nn.Module) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    losses = []
    for _ in range(2):
        loss = (compute(model) - 0.3).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


CHANGES: dict[str, Callable[[nn.Module], Any]] = {
    'prune': lambda layer: prune.l1_unstructured(layer, 'weight', 0.5),
    'weight_norm': parametrizations.weight_norm,
    'spectral_norm': parametrizations.spectral_norm,
    'old weight_norm': nn.utils.weight_norm,
    'old spectral_norm': nn.utils.spectral_norm,
}


@pytest.mark.filterwarnings('ignore:.*weight_norm. is deprecated')
@pytest.mark.parametrize('kind', ['trunk', 'timm'])
@pytest.mark.parametrize('change', CHANGES)
def test_weights_that_are_computed_train_as_on_the_slow_path(
    kind: str, change: str, slowly: Callable[[], None]
) -> None:
    def changed() -> nn.Module:
        model = build(kind, training=True)
        torch.manual_seed(0)  # spectral norms are estimated from a random start
        for name in layers_with_weights(model):
            CHANGES[change](model.get_submodule(name))
        return model

    fast = train_two_steps(changed())
    slowly()
    assert fast == pytest.approx(train_two_steps(changed()), rel=1e-4)
    assert fast[1] != pytest.approx(fast[0], rel=1e-3)


def test_pruned_weights_stay_pruned_in_what_is_computed() -> None:
    model = build('trunk')
    for name in layers_with_weights(model):
        prune.l1_unstructured(model.get_submodule(name), 'weight', 0.5)
    train_two_steps(model)
    expected = compute(model)
    for name in layers_with_weights(model):
        prune.remove(model.get_submodule(name), 'weight')
        assert (model.get_submodule(name).weight == 0).float().mean() > 0.4
    torch.testing.assert_close(compute(model), expected, atol=1e-5, rtol=1e-4)


def replace(model: nn.Module, kind: type[nn.Module], new: Callable[[Any], nn.Module]) -> int:
    found = [name for name, module in model.named_modules() if type(module) is kind]
    for name in found:
        parent, _, child = name.rpartition('.')
        setattr(model.get_submodule(parent), child, new(model.get_submodule(name)))
    return len(found)


class FrozenNorm(nn.Module):
    """A BatchNorm as detectors bring them along: four buffers, and no ``eps``."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        for name in ('weight', 'bias', 'running_mean', 'running_var'):
            self.register_buffer(name, getattr(norm, name).detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias, mean, var = (getattr(self, n)[:, None, None] for n, _ in self.named_buffers())
        return (x - mean) * torch.rsqrt(var + 1e-5) * weight + bias


def without_statistics(norm: nn.BatchNorm2d) -> nn.Module:
    return nn.BatchNorm2d(norm.num_features, track_running_stats=False)


def without_weights(norm: nn.BatchNorm2d) -> nn.Module:
    return nn.BatchNorm2d(norm.num_features, affine=False).eval()


def test_other_norms_in_place_of_a_batch_norm_are_called() -> None:
    expected = compute(build('trunk'))
    model = build('trunk')
    assert replace(model, nn.BatchNorm2d, FrozenNorm) == 12
    torch.testing.assert_close(compute(model), expected, atol=1e-5, rtol=1e-4)
    model = build('trunk')
    replace(model, nn.BatchNorm2d, lambda norm: nn.GroupNorm(2, norm.num_features))
    assert not torch.allclose(compute(model), expected, atol=1e-3)
    for new in (without_statistics, without_weights):
        model = build('trunk')
        replace(model, nn.BatchNorm2d, new)
        assert compute(model).isfinite().all()


def test_fused_batch_norms_change_nothing() -> None:
    fuse_conv_bn = pytest.importorskip('mmcv.cnn').fuse_conv_bn
    for kind in ('trunk', 'timm'):
        model = build(kind)
        expected = compute(model)
        fused = fuse_conv_bn(copy.deepcopy(model))
        assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
        torch.testing.assert_close(compute(fused), expected, atol=1e-5, rtol=1e-4)


def test_batch_norms_that_are_synchronised_are_folded_while_they_keep_their_statistics() -> None:
    model = build('trunk')
    expected = compute(model)
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)).eval()
    torch.testing.assert_close(compute(synchronised), expected)


@pytest.mark.parametrize('kind', ['trunk', 'timm'])
def test_another_activation_is_called(kind: str) -> None:
    expected = compute(build(kind))
    model = build(kind)
    assert replace(model, QuickGELU, lambda _: nn.ReLU()) == 4
    assert not torch.allclose(compute(model), expected, atol=1e-3)


def test_a_convolution_with_other_settings_keeps_them(slowly: Callable[[], None]) -> None:
    def changed(**settings: Any) -> nn.Module:
        model = build('trunk')
        for module in model.modules():
            if isinstance(module, layers.ConvProjection):
                for name, value in settings.items():
                    setattr(module.conv, name, value)
        return model

    models = [changed(dilation=(2, 2), padding=(2, 2)), changed(padding_mode='reflect')]
    models[1].stage0.blocks[0].attn.conv_proj_q.conv._reversed_padding_repeated_twice = [1, 1, 1, 1]
    fast = [compute(model) for model in models]
    slowly()
    for got, model in zip(fast, models):
        torch.testing.assert_close(got, compute(model), atol=1e-5, rtol=1e-4)


class Subclass(torch.Tensor):
    """A tensor that computes by rules of its own, as quantized weights do."""


def test_what_is_plain() -> None:
    linear = nn.Linear(2, 2)
    assert is_plain(linear, nn.Linear)
    assert is_plain_linear(linear)
    assert not is_plain(linear, nn.Conv2d)
    assert not is_plain_linear(nn.Linear(2, 2, bias=False))
    linear.weight = nn.Parameter(linear.weight.detach().as_subclass(Subclass))
    assert not is_plain_linear(linear)
    assert not is_plain_linear(nn.modules.linear.NonDynamicallyQuantizableLinear(2, 2))
    assert is_idle(nn.Identity())
    assert is_idle(nn.Dropout(0.0))
    assert not is_idle(nn.Dropout(0.1))
    assert not is_idle(nn.ReLU())


def test_what_can_be_folded() -> None:
    conv, norm = nn.Conv2d(2, 2, 3, bias=False), nn.BatchNorm2d(2).eval()
    assert is_foldable(conv, norm)
    assert is_foldable(conv, nn.SyncBatchNorm(2).eval())
    assert not is_foldable(conv, nn.BatchNorm2d(2))
    assert not is_foldable(conv, nn.Identity().eval())
    assert not is_foldable(conv.double(), norm), 'they would have one precision'
    assert is_foldable(nn.Conv2d(2, 2, 3), norm)


@pytest.mark.parametrize('window_size', [None, 3])
@pytest.mark.parametrize('kind', ['trunk', 'backbone', 'timm'])
def test_torch_fx_traces_models_for_any_size(kind: str, window_size: int | None) -> None:
    if kind == 'backbone':
        model = pytest.importorskip('cvt_dense.backbones.cvt').CvT(SMALL, window_size=window_size).eval()
    elif kind == 'timm':
        model = create_model('cvt_13', arch=SMALL, window_size=window_size).eval()
    else:
        model = CvTTrunk(SMALL, window_size=window_size).eval()
    traced = torch.fx.symbolic_trace(model)
    for size in ((1, 3, 64, 96), (2, 3, 75, 49)):
        images = torch.randn(size)
        torch.testing.assert_close(traced(images), model(images), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match='at least 16x16 pixels'):
        traced(torch.randn(1, 3, 8, 8))
