"""Small variants among timm's models, for packages that take a model by its name alone.

Their names do not begin with those of the families, whose lists are tested.
"""

from __future__ import annotations

from typing import Any

import pytest
from golden import CMT_TINY, TINY
from timm.models import register_model
from torch import nn

from cvt_dense.backbones.timm import cvt_13
from cvt_dense.backbones.timm_cmt import cmt_s

#: By name, the channels of their maps.
CHANNELS = dict(small_cvt=TINY['embed_dims'], small_cmt=CMT_TINY['embed_dims'])

each_model = pytest.mark.parametrize('name', CHANNELS)


@register_model
def small_cvt(pretrained: bool = False, **settings: Any) -> nn.Module:
    """A CvT with maps at strides 4, 8 and 16."""
    return cvt_13(pretrained, **(dict(arch=TINY) | settings))


@register_model
def small_cmt(pretrained: bool = False, **settings: Any) -> nn.Module:
    """A CMT with maps at strides 4, 8, 16 and 32."""
    return cmt_s(pretrained, **(dict(arch=CMT_TINY | dict(pretrain_size=64)) | settings))
