"""Feature maps of our models in timm: those of the stages, and one behind the last for whoever counts on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.models._features import FeatureGetterNet
from torch import nn

from ..models.settings import integer
from .timm_weights import fitting, name_of


class FeatureMaps(FeatureGetterNet):
    """timm's wrapper for feature maps, which takes the file of a whole model as the model itself does.

    Args:
        model: A :class:`~cvt_dense.backbones.timm_model.StagedModel`.
        out_indices: Maps to return, as timm takes them; None for those of all stages. The number of stages itself
            stands for one more map, a convolution of stride 2 with fresh weights behind the last stage: segmentation
            models and detectors often count on as many maps as a ResNet has.
        output_stride: The largest stride that a returned map may have, as in timm. The convolution of one more map
            keeps to it, with a stride of 1; stages do not, and cannot be dilated.
        **settings: Of timm's wrapper.

    Raises:
        ValueError: If a stage that is asked for is at a larger stride than ``output_stride``.
    """

    def __init__(
        self,
        model: nn.Module,
        out_indices: int | list[int] | tuple[int, ...] | None = None,
        output_stride: int | None = None,
        **settings: Any,
    ) -> None:
        num_stages = len(model.stages)
        if out_indices is None:
            out_indices = tuple(range(num_stages))
        if not isinstance(out_indices, int) and num_stages in out_indices:
            stride = model.feature_info[-1]['reduction']
            check_output_stride(output_stride, stride, model.family)
            model.add_map(2 if output_stride is None or 2 * stride <= output_stride else 1)
        super().__init__(model, out_indices=out_indices, **settings)
        check_output_stride(output_stride, max(self.feature_info.reduction()), model.family)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's; a strict one takes the names of the model that is wrapped, and those of other formats.

        What a file has not got for a map behind the last stage stays fresh.

        Raises:
            CheckpointError: As :func:`~cvt_dense.backbones.timm_weights.fitting` does.
        """
        if strict and not any(key.startswith('model.') for key in state_dict):
            tensors = fitting(state_dict, self.model, name_of(self.model))
            state_dict = {f'model.{key}': tensor for key, tensor in tensors.items()}
        return super().load_state_dict(state_dict, strict=strict, assign=assign)


def check_output_stride(output_stride: int | None, stride: int, family: str) -> None:
    """Check that a model has no larger stride than it is asked to have.

    Args:
        output_stride: What is asked for; None for anything.
        stride: The largest that it has.
        family: Name of its family.

    Raises:
        ValueError: If it has.
    """
    if output_stride is not None and integer(output_stride, 'output_stride') < stride:
        raise ValueError(
            f'output_stride must be at least {stride}, the stride of the last map, got {output_stride}: stages of '
            f'{family} cannot be dilated, but out_indices may leave out those at larger strides'
        )
