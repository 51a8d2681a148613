"""Transforms for pipelines in configs."""

from __future__ import annotations

from typing import Any

from mmengine.registry import TRANSFORMS


@TRANSFORMS.register_module()
class PadKeepImgShape:
    """The toolkit's ``Pad``, but the border is no part of the image.

    ``Pad`` counts its border into ``img_shape``, so that nothing says any more where the image ends. Here it stays
    what it was before, and backbones that ignore padding ignore the border too; boxes that are predicted are clipped to
    the image. Nothing that moves the image, such as a flip, may come after it.

    Args:
        settings: What ``Pad`` of the toolkit takes: ``size``, ``size_divisor``, ``pad_to_square``, ``pad_val`` and
            ``padding_mode``.
    """

    def __init__(self, **settings: Any) -> None:
        self.pad = TRANSFORMS.build(dict(type='Pad', **settings))

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Pad the image and what is annotated on it, at the right and at the bottom."""
        img_shape = results['img'].shape[:2]
        return dict(self.pad(results), img_shape=img_shape)

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.pad})'
