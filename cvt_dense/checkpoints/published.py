"""The table of what the authors of CvT and CMT published, and of what comes with this package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Published:
    """A checkpoint that the authors published.

    Attributes:
        name: As ``init_cfg`` takes it.
        arch: Name of the variant.
        resolution: Side of the images that it was trained on last, in pixels.
        data: What it was trained on: ``'ImageNet-1k'``, or ``'ImageNet-22k, ImageNet-1k'`` (pre-trained on the first,
            fine-tuned on the second).
        top1: Top-1 accuracy on ImageNet-1k's validation images in percent, as published (CvT: arXiv 2103.15808,
            table 3; CMT: the authors' README).
        filename: Name of the authors' own file.
        repo: Repository on the Hugging Face Hub; it holds the weights as ``pytorch_model.bin``. None if there is none.
        timm_tag: Tag of the pre-trained weights in timm.
        url: Where the authors' own file is, if it is not on the Hub.
    """

    name: str
    arch: str
    resolution: int
    data: str
    top1: float
    filename: str
    repo: str | None
    timm_tag: str
    url: str | None = None


def _published(arch: str, resolution: int, data: str, top1: float, filename: str, repo: str) -> Published:
    suffix = 'in22k' if '22k' in data else 'in1k'
    tag = 'msft_in22k_ft_in1k_384' if '22k' in data else 'msft_in1k' if resolution == 224 else 'msft_in1k_384'
    name = f'{arch}-{resolution}x{resolution}-{suffix}'
    return Published(name, arch, resolution, data, top1, filename, repo, tag)


_RELEASE = 'https://github.com/ggjy/CMT.pytorch/releases/download/release-v1/'
_FASTMIM = 'https://github.com/ggjy/FastMIM.pytorch/releases/download/release-cls/'


def _cmt(arch: str, resolution: int, top1: float, filename: str, folder: str = _RELEASE) -> Published:
    by_fastmim = folder == _FASTMIM
    name = f'{arch}-{resolution}x{resolution}{"-fastmim" if by_fastmim else ""}-in1k'
    tag = 'huawei_fastmim_in1k' if by_fastmim else 'huawei_in1k'
    return Published(name, arch, resolution, 'ImageNet-1k', top1, filename, None, tag, folder + filename)


_1K, _22K = 'ImageNet-1k', 'ImageNet-22k, ImageNet-1k'

#: By name.
PUBLISHED: dict[str, Published] = {
    entry.name: entry
    for entry in (
        _published('cvt-13', 224, _1K, 81.6, 'CvT-13-224x224-IN-1k.pth', 'microsoft/cvt-13'),
        _published('cvt-13', 384, _1K, 83.0, 'CvT-13-384x384-IN-1k.pth', 'microsoft/cvt-13-384'),
        _published('cvt-13', 384, _22K, 83.3, 'CvT-13-384x384-IN-22k.pth', 'microsoft/cvt-13-384-22k'),
        _published('cvt-21', 224, _1K, 82.5, 'CvT-21-224x224-IN-1k.pth', 'microsoft/cvt-21'),
        _published('cvt-21', 384, _1K, 83.3, 'CvT-21-384x384-IN-1k.pth', 'microsoft/cvt-21-384'),
        _published('cvt-21', 384, _22K, 84.9, 'CvT-21-384x384-IN-22k.pth', 'microsoft/cvt-21-384-22k'),
        _published('cvt-w24', 384, _22K, 87.7, 'CvT-w24-384x384-IN-22k.pth', 'microsoft/cvt-w24-384-22k'),
        _cmt('cmt-ti', 160, 79.0, 'cmt_tiny.pth'),
        _cmt('cmt-xs', 192, 81.8, 'cmt_xs.pth'),
        _cmt('cmt-s', 224, 83.5, 'cmt_small.pth'),
        _cmt('cmt-b', 256, 84.5, 'cmt_base.pth'),
        _cmt('cmt-s', 224, 83.9, 'cmt_small_fastmim_hog_800e_finetune_83.9.pth', _FASTMIM),
    )
}

#: Files that come with the package, by name: the demo's backbone (docs/demo.md says how it was made).
SHIPPED: dict[str, Path] = {'cvt-tiny-shapes': Path(__file__).parents[1] / 'weights' / 'cvt-tiny-shapes.safetensors'}


def find_published(name: str) -> Published | None:
    """The published checkpoint of a name, ours or that of the authors' file."""
    return PUBLISHED.get(name) or next((entry for entry in PUBLISHED.values() if entry.filename == name), None)
