"""Real pictures of mixed sizes, one by one and in batches: what is equal, and what a batch still changes.

The backbone's maps are equal. A neck's convolutions see the zeros beside a picture, so its maps are equal except at the
picture's edge; GroupNorm in a neck sees the zeros everywhere. So AP differs a little.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from compare_padding import CONFIG, crop_to_mixed_sizes
from mmdet.structures import DetDataSample
from mmengine.config import Config
from paths import ROOT
from PIL import Image
from tool_processes import run_tool
from torch import nn

from cvt_dense.engine.model import build_model

EDGE = 2  # pixels of a neck's map that its convolution, and those above it, reach beyond the picture from


@pytest.fixture
def pictures(data: Path, tmp_path: Path) -> list[torch.Tensor]:
    """Four nuclei of different sizes."""
    crop_to_mixed_sizes(data / 'nuclei', tmp_path / 'nuclei', count=12)
    paths = sorted((tmp_path / 'nuclei/val').iterdir())[:4]
    found = [torch.from_numpy(np.array(Image.open(path).convert('RGB'))).permute(2, 0, 1) for path in paths]
    assert len({picture.shape for picture in found}) == 4
    return found


def maps_of(model: nn.Module, pictures: list[torch.Tensor]) -> tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]:
    """The maps of the backbone and those of the neck, as a detector has them of a batch."""
    shapes = [tuple(picture.shape[1:]) for picture in pictures]
    samples = [DetDataSample(metainfo=dict(img_shape=shape, ori_shape=shape)) for shape in shapes]
    kept: dict[str, Sequence[torch.Tensor]] = {}
    handles = [
        part.register_forward_hook(lambda module, args, output, name=name: kept.update({name: output}))
        for name, part in (('backbone', model.backbone), ('neck', model.neck))
    ]
    with torch.no_grad():
        model(**model.data_preprocessor(dict(inputs=pictures, data_samples=samples)), mode='tensor')
    for handle in handles:
        handle.remove()
    return kept['backbone'], kept['neck']


@pytest.mark.parametrize('has_norms', [True, False])
def test_a_batch_of_real_pictures_gives_the_features_of_each(pictures: list[torch.Tensor], has_norms: bool) -> None:
    cfg = Config.fromfile(ROOT / CONFIG)
    if not has_norms:
        cfg.model.neck.norm_cfg = None
    model = build_model(cfg)
    model.init_weights()  # the backbone's are those of the package
    model.eval()
    together = maps_of(model, pictures)
    inside_of_neck: list[float] = []
    for place, picture in enumerate(pictures):
        alone = maps_of(model, [picture])
        for ours, single, edge in ((together[0], alone[0], 0), (together[1], alone[1], EDGE)):
            for batch, (expected,), stride in zip(ours, single, (4, 8, 16), strict=True):
                inside = (..., *(slice(side // stride - edge) for side in picture.shape[1:]))
                difference = (batch[place][inside] - expected[inside]).abs().max() / expected.abs().max()
                if edge:
                    inside_of_neck.append(float(difference))
                else:
                    assert difference <= 1e-5
    assert (max(inside_of_neck) <= 1e-5) == (not has_norms)


@pytest.mark.slow
def test_ap_is_the_same_at_batch_sizes_of_1_and_of_4(data: Path, tmp_path: Path) -> None:
    """Without norms in neck and heads, as all configs for large models are; GroupNorm moves AP by up to a point."""
    crop_to_mixed_sizes(data / 'nuclei', tmp_path / 'nuclei')
    env = os.environ | dict(NUCLEI_ROOT=str(tmp_path / 'nuclei'))
    plain = ['model.neck.norm_cfg=None', 'model.roi_head.mask_head.norm_cfg=None']
    short = ['train_cfg.max_epochs=2', 'train_cfg.val_interval=3', 'param_scheduler.1.end=2']
    short += ['randomness.seed=0', 'default_hooks.samples=None']
    options = ['--work-dir', tmp_path / 'run', '--cfg-options', *plain, *short]
    run = run_tool(['tools/train.py', CONFIG, *options], env=env)
    assert run.returncode == 0, run.stderr
    ap: dict[int, dict[str, float]] = {}
    for batch_size in (1, 4):
        options = ['--work-dir', tmp_path / f'test{batch_size}', '--cfg-options', *plain]
        checkpoint = tmp_path / 'run' / 'epoch_2.pth'
        loader = f'test_dataloader.batch_size={batch_size}'
        run = run_tool(['tools/test.py', CONFIG, checkpoint, *options, loader], env=env)
        assert run.returncode == 0, run.stderr
        found = re.findall(r'coco/((?:bbox|segm)_mAP(?:_50|_75)?): ([\d.]+)', run.stdout)
        ap[batch_size] = {name: float(value) for name, value in found}
    print(f'box and mask AP by batch size: {ap}')  # shown by pytest -rP
    assert len(ap[1]) == 6
    assert min(ap[1]['bbox_mAP'], ap[1]['segm_mAP']) > 0.1
    for name, value in ap[1].items():
        assert ap[4][name] == pytest.approx(value, abs=0.005 if name.endswith('mAP') else 0.01), name
