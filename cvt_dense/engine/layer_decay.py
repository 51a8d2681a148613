"""Layer-wise learning-rate decay: the deeper a parameter's layer, the closer its rate to the head's."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn

_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
    nn.GroupNorm,
)
_SETTINGS = {'layer_decay_rate', 'norm_decay_mult', 'bias_decay_mult', 'custom_keys'}


@dataclass
class ParamGroup:
    """Parameters that are optimised alike.

    Attributes:
        depth: Their layer's, as the backbone counts; the head's for all that is not in the backbone.
        lr: Learning rate.
        weight_decay: Weight decay.
        extras: What else ``custom_keys`` sets for them, for the optimizer.
        names: Of the parameters.
        params: The parameters.
    """

    depth: int
    lr: float
    weight_decay: float
    extras: dict[str, Any] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    params: list[nn.Parameter] = field(default_factory=list)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor:
    """Builds an optimizer wrapper with a learning rate per layer (ELECTRA, arXiv 2003.10555; BEiT, arXiv 2106.08254).

    The rate of a parameter is ``lr * layer_decay_rate ** (layers above it)``; heads, necks and the backbone's fresh
    output norms have the full rate. Norms, biases and the cls token are not decayed. Which layer a parameter is in the
    backbone says itself, by ``get_layer_depth(name, prefix) -> (depth, number of layers)``, the method that backbones
    of mmpretrain have too.

    Args:
        optim_wrapper_cfg: ``dict(type=…, optimizer=dict(type=…, lr=…, weight_decay=…))``.
        paramwise_cfg: ``layer_decay_rate`` in (0, 1], 1 by default; ``norm_decay_mult`` and ``bias_decay_mult``, 0 by
            default; ``custom_keys``, from a part of parameters' names to ``dict(lr_mult=…, decay_mult=…)``. Of several
            keys that fit a name the longest that gives a factor decides on it: unlike with mmengine's own constructor,
            ``backbone=dict(lr_mult=0.1)`` leaves the backbone's norms without weight decay.

    Raises:
        ValueError: If a setting is unknown or out of range, or the optimizer has no ``lr``.
    """

    def __init__(self, optim_wrapper_cfg: Mapping[str, Any], paramwise_cfg: Mapping[str, Any] | None = None) -> None:
        self.optim_wrapper_cfg = dict(copy.deepcopy(optim_wrapper_cfg))
        self.optimizer_cfg = self.optim_wrapper_cfg.pop('optimizer')
        settings = dict(copy.deepcopy(paramwise_cfg or {}))
        unknown = sorted(set(settings) - _SETTINGS)
        if unknown:
            raise ValueError(
                f'paramwise_cfg has an unknown key {unknown[0]!r}; it takes {", ".join(sorted(_SETTINGS))}'
            )
        if 'lr' not in self.optimizer_cfg:
            raise ValueError('the optimizer needs an lr for layer-wise decay')
        self.lr = self.optimizer_cfg['lr']
        self.weight_decay = self.optimizer_cfg.get('weight_decay', 0.0)
        self.decay_rate = settings.get('layer_decay_rate', 1.0)
        if not isinstance(self.decay_rate, (int, float)) or not 0 < self.decay_rate <= 1:
            raise ValueError(f'layer_decay_rate must lie in (0, 1], got {self.decay_rate!r}')
        self.norm_decay_mult = settings.get('norm_decay_mult', 0.0)
        self.bias_decay_mult = settings.get('bias_decay_mult', 0.0)
        spared = {name: dict(decay_mult=0.0) for name in ('cls_token', 'pos_embed')}
        self.custom_keys = spared | dict(settings.get('custom_keys', {}))

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the wrapper for a model, which may be in a distributed wrapper, and print the groups.

        Raises:
            ValueError: If the model's backbone does not know its layers.
        """
        groups = self.param_groups(getattr(model, 'module', model))
        print_log(_table(groups), logger='current')
        as_dicts = [dict(params=g.params, lr=g.lr, weight_decay=g.weight_decay, **g.extras) for g in groups]
        optimizer = OPTIMIZERS.build(self.optimizer_cfg, default_args=dict(params=as_dicts))
        self.optim_wrapper_cfg.setdefault('type', 'OptimWrapper')
        return OPTIM_WRAPPERS.build(self.optim_wrapper_cfg, default_args=dict(optimizer=optimizer))

    def param_groups(self, model: nn.Module) -> list[ParamGroup]:
        """The groups of a model's trainable parameters, from the first layer to the head.

        Raises:
            ValueError: If the model's backbone does not know its layers.
        """
        backbone = getattr(model, 'backbone', None)
        if not hasattr(backbone, 'get_layer_depth'):
            raise ValueError(
                'layer-wise decay needs a backbone with get_layer_depth, such as CvT, '
                f'and {type(backbone).__name__} has none'
            )
        groups: dict[tuple[Any, ...], ParamGroup] = {}
        for name, parameter, module in _trainable(model):
            depth, num_layers = backbone.get_layer_depth(name, prefix='backbone.')
            lr_mult, decay_mult, extras = self._factors(name, module)
            lr = self.lr * lr_mult * self.decay_rate ** (num_layers - 1 - depth)
            key = (depth, lr, self.weight_decay * decay_mult, repr(sorted(extras.items())))
            group = groups.setdefault(key, ParamGroup(*key[:3], extras))
            group.names.append(name)
            group.params.append(parameter)
        return sorted(groups.values(), key=lambda g: (g.depth, g.lr, -g.weight_decay))

    def _factors(self, name: str, module: nn.Module) -> tuple[float, float, dict[str, Any]]:
        if isinstance(module, _NORMS):
            factors = dict(lr_mult=1.0, decay_mult=self.norm_decay_mult)
        else:
            factors = dict(lr_mult=1.0, decay_mult=self.bias_decay_mult if name.endswith('bias') else 1.0)
        for key in sorted(self.custom_keys, key=len):
            if key in name:
                factors |= self.custom_keys[key]
        return factors.pop('lr_mult'), factors.pop('decay_mult'), factors


def _trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, nn.Module]]:
    """Each trainable parameter once, with its name and the module that owns it."""
    owners = {id(p): module for module in model.modules() for p in module.parameters(recurse=False)}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, parameter, owners[id(parameter)]


def _table(groups: list[ParamGroup]) -> str:
    lines = ['Parameter groups:', f'{"layer":>5} {"lr":>10} {"decay":>8} {"tensors":>8} {"parameters":>12}  first']
    lines += [
        f'{g.depth:>5} {g.lr:>10.3g} {g.weight_decay:>8.3g} {len(g.params):>8} {sum(p.numel() for p in g.params):>12,}'
        f'  {g.names[0]}'
        for g in groups
    ]
    return '\n'.join(lines)
