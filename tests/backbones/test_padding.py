"""The sizes of images get from the data samples to the backbone, whichever way a toolkit's model is called."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mmdet.datasets.transforms  # noqa: F401  registers them
import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmdet.apis import DetInferencer
from mmdet.models import DetTTAModel
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import ConfigDict
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from paths import ROOT
from timm.layers import DropPath
from torch import nn

from cvt_dense.backbones.padding import announce_sizes, announced_sizes
from cvt_dense.engine.config import load_config
from cvt_dense.engine.model import build_model
from cvt_dense.models.norms import keeps_statistics

SIZES = [(64, 96), (90, 50), (64, 96), (33, 47)]
TOLERANCE = 1e-5


def model_of(name: str, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    cfg = load_config(ROOT / 'configs' / f'{name}.py', dict({'model.backbone.init_cfg': None}, **settings))
    return build_model(cfg)


@pytest.fixture
def detector() -> Iterator[nn.Module]:
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield model_of('maskrcnn_cvttiny_fpn_shapes').eval()


@pytest.fixture
def segmentor() -> Iterator[nn.Module]:
    with DefaultScope.overwrite_default_scope('mmseg'):
        yield model_of('upernet_cvttiny_shapes').eval()


def detection_batch(sizes: list[tuple[int, int]] = SIZES) -> dict[str, list[Any]]:
    torch.manual_seed(1)
    samples = []
    for height, width in sizes:
        sample = DetDataSample(metainfo=dict(img_shape=(height, width), ori_shape=(height, width), scale_factor=(1, 1)))
        masks = np.zeros((1, height, width), np.uint8)
        masks[:, 5:25, 5:25] = 1

        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[5.0, 5, 25, 25]]),
            labels=torch.tensor([1]),
            masks=BitmapMasks(masks, height, width),
        )
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        samples.append(sample)
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes]
    return dict(inputs=images, data_samples=samples)


def segmentation_batch(sizes: list[tuple[int, int]] = SIZES) -> dict[str, list[Any]]:
    torch.manual_seed(1)
    samples = []
    for size in sizes:
        sample = SegDataSample(metainfo=dict(img_shape=size, ori_shape=size))
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 5, (1, *size)))
        samples.append(sample)
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes]
    return dict(inputs=images, data_samples=samples)


class Watched:
    """The maps that a backbone returned in a call, and the same of each image alone."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.backbone = model, model.backbone
        self.seen: list[tuple[torch.Tensor, tuple[torch.Tensor, ...]]] = []
        self.handle = self.backbone.register_forward_hook(self._see)

    def _see(self, module: Any, args: Any, maps: Any) -> None:
        self.seen.append((args[0].detach(), tuple(x.detach() for x in maps)))

    def assert_padding_had_no_effect(
        self, sizes: list[tuple[int, int]] = SIZES, tolerance: float = TOLERANCE, before: Any = None
    ) -> None:
        """Compare with each image alone, by the backbone as it was ``before`` the call (by default as it is)."""
        self.handle.remove()
        ((images, maps),) = self.seen
        backbone = before or self.backbone
        assert images.shape[0] == len(sizes)
        assert max(size[0] for size in sizes) < images.shape[2] or len(set(sizes)) > 1  # or it would show nothing
        for place, (height, width) in enumerate(sizes):
            with torch.no_grad():
                alone = backbone(images[place : place + 1, :, :height, :width].clone())
            for x, (expected,) in zip(maps, alone, strict=True):
                inside = x[place, :, : expected.shape[1], : expected.shape[2]]
                assert (inside - expected).abs().max() <= tolerance * expected.abs().max()
                assert not x[place, :, expected.shape[1] :].any()


CALLS: dict[str, Callable[[nn.Module, dict[str, Any]], Any]] = {
    'test_step': lambda model, data: model.test_step(data),
    'val_step': lambda model, data: model.val_step(data),
    'predict': lambda model, data: model(**model.data_preprocessor(data), mode='predict'),
    'tensor': lambda model, data: model(**model.data_preprocessor(data), mode='tensor'),
    'tensor, by position': lambda model, data: model(*model.data_preprocessor(data).values()),
    'the method predict itself': lambda model, data: model.predict(*model.data_preprocessor(data).values()),
}


@pytest.mark.parametrize('call', CALLS)
def test_a_detector_is_told_the_sizes_in_every_mode(detector: nn.Module, call: str) -> None:
    watched = Watched(detector)
    with torch.no_grad():
        CALLS[call](detector, detection_batch())
    watched.assert_padding_had_no_effect()


def test_a_copy_of_a_model_has_the_sizes_too(detector: nn.Module) -> None:
    average = copy.deepcopy(detector)
    watched = Watched(average)
    with torch.no_grad():
        average.test_step(detection_batch())
    watched.assert_padding_had_no_effect()


def without_drop_path(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0


@pytest.mark.parametrize('with_cp', [False, True])
def test_a_detector_is_told_the_sizes_in_training(detector: nn.Module, with_cp: bool) -> None:
    for stage in detector.backbone.stages:
        stage.with_cp = with_cp
    without_drop_path(detector)
    detector.train()
    before = copy.deepcopy(detector.backbone)
    watched = Watched(detector)
    optimizer = OptimWrapper(torch.optim.SGD(detector.parameters(), lr=0.01))
    losses = detector.train_step(detection_batch(), optimizer)
    assert all(torch.isfinite(loss) for loss in losses.values())
    watched.assert_padding_had_no_effect(before=before)


@pytest.mark.parametrize('mixed_precision', [False, True])
def test_a_segmentor_is_told_the_sizes_in_training(segmentor: nn.Module, mixed_precision: bool) -> None:
    without_drop_path(segmentor)
    segmentor.train()
    for module in segmentor.backbone.modules():
        if keeps_statistics(module):
            module.eval()
    watched = Watched(segmentor)
    with torch.autocast('cpu', torch.bfloat16, enabled=mixed_precision):
        prepared = segmentor.data_preprocessor(segmentation_batch(), training=True)
        assert prepared['inputs'].shape[2:] == (160, 160)
        losses = segmentor(**prepared, mode='loss')
        sum(loss for name, loss in losses.items() if 'loss' in name).backward()
        watched.assert_padding_had_no_effect(tolerance=0.02 if mixed_precision else TOLERANCE)


@pytest.mark.parametrize('mode', ['whole', 'slide'])
def test_a_segmentor_that_pads_when_tested_predicts_as_without_padding(segmentor: nn.Module, mode: str) -> None:
    sizes = [(70, 101), (70, 101)]
    segmentor.data_preprocessor.test_cfg = dict(size_divisor=32)
    segmentor.test_cfg = ConfigDict(mode=mode, crop_size=(64, 64), stride=(48, 48))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    segmentor.backbone.register_forward_hook(lambda module, args, maps: seen.append((args[0], maps[0])))
    with torch.no_grad():
        segmentor.test_step(segmentation_batch(sizes))
        assert len(seen) == (1 if mode == 'whole' else 6)
        for images, maps in list(seen):
            top, left = divmod(images.storage_offset(), images.stride(2))
            height, width = min(70 - top, images.shape[2]), min(101 - left, images.shape[3])
            alone = segmentor.backbone(images[:, :, :height, :width].clone())[0]
            assert (maps[:, :, : alone.shape[2], : alone.shape[3]] - alone).abs().max() <= TOLERANCE * alone.abs().max()
            assert not maps[:, :, alone.shape[2] :].any()


def letterboxed(pad: str, *flips: str) -> dict[str, list[Any]]:
    """Two images as a pipeline with a letterbox gives them, and what ends up on it of each: 95x128 and 128x49."""
    rng = np.random.default_rng(0)
    packed = []
    for height, width in ((90, 121), (200, 77)):
        steps = [
            dict(type='mmdet.Resize', scale=(128, 128), keep_ratio=True),
            *(dict(type='mmdet.RandomFlip', prob=1.0, direction=flip) for flip in flips),
            dict(type=pad, size=(128, 128), pad_val=dict(img=(114, 114, 114))),
            dict(
                type='mmdet.PackDetInputs',
                meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction'),
            ),
        ]
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        loaded = dict(img=image, img_id=0, img_path='', img_shape=(height, width), ori_shape=(height, width))
        loaded |= dict(gt_bboxes=np.array([[5, 5, 40, 40]], np.float32), gt_bboxes_labels=np.array([1]))
        loaded |= dict(gt_ignore_flags=np.array([False]))
        loaded |= dict(gt_masks=BitmapMasks(np.ones((1, height, width), np.uint8), height, width))
        packed.append(Compose(steps)(loaded))
    return dict(inputs=[p['inputs'] for p in packed], data_samples=[p['data_samples'] for p in packed])


ON_LETTERBOX = [(95, 128), (128, 49)]


def test_a_letterbox_of_a_detector_has_no_effect_when_it_is_tested(detector: nn.Module) -> None:
    """``Pad`` of the toolkits counts the border into ``img_shape``; boxes are brought back by ``scale_factor``."""
    batch = letterboxed('mmdet.Pad')
    assert batch['data_samples'][0].img_shape == (128, 128)
    watched = Watched(detector)
    with torch.no_grad():
        detector.test_step(batch)
    watched.assert_padding_had_no_effect(ON_LETTERBOX)


@pytest.mark.parametrize('is_tested', [False, True])
@pytest.mark.parametrize('flips', [(), ('horizontal',), ('vertical',)])
def test_a_letterbox_that_keeps_img_shape_has_no_effect_in_training_either(
    detector: nn.Module, is_tested: bool, flips: tuple[str, ...]
) -> None:
    batch = letterboxed('PadKeepImgShape', *flips)
    without_drop_path(detector)
    detector.train(not is_tested)
    before = copy.deepcopy(detector.backbone)
    watched = Watched(detector)
    if is_tested:
        with torch.no_grad():
            detector.test_step(batch)
    else:
        detector.train_step(batch, OptimWrapper(torch.optim.SGD(detector.parameters(), lr=0.01)))
    watched.assert_padding_had_no_effect(ON_LETTERBOX, before=before)


def test_semi_supervised_detectors_have_batches_by_name() -> None:
    batches = dict(sup=torch.zeros(1, 3, 40, 40), unsup=torch.zeros(2, 3, 40, 40))
    samples = dict(
        sup=[DetDataSample(metainfo=dict(img_shape=(30, 40)))],
        unsup=[DetDataSample(metainfo=dict(img_shape=(40, side))) for side in (40, 20)],
    )
    announce_sizes(batches, samples, is_tested=False)
    assert announced_sizes(batches['sup']) == [(30, 40)]
    assert announced_sizes(batches['unsup']) == [(40, 40), (40, 20)]


@pytest.mark.parametrize(
    ('samples', 'sizes'),
    [
        ([dict(img_shape=(40, 50, 3))], None),  # fills the batch
        ([dict(img_shape=(30, 50, 3))], [(30, 50)]),
        ([dict(img_shape=(300, 50))], None),  # wrong, and no reason to stop
        ([dict()], None),
        ([dict(img_shape=(30, 40))] * 2, None),  # not of this batch
        ([dict(img_shape=(40, 50), ori_shape=(80, 50), scale_factor=(0.5, 0.5))], [(40, 25)]),
        ([dict(img_shape=(40, 50), ori_shape=(80, 50), scale_factor=(0.5, 0.5), flip=True)], None),
        ([dict(img_shape=(40, 50), ori_shape=(80, 50), scale_factor=(0.5, 0.5), border=[1, 2, 3, 4])], None),
    ],
)
def test_what_samples_say(samples: list[dict[str, Any]], sizes: Any) -> None:
    x = torch.zeros(1, 3, 40, 50)
    announce_sizes(x, [DetDataSample(metainfo=metainfo) for metainfo in samples], is_tested=True)
    assert announced_sizes(x) == sizes


def test_crops_and_mosaics_of_training_leave_img_shape_as_it_is() -> None:
    x = torch.zeros(1, 3, 40, 50)
    sample = DetDataSample(metainfo=dict(img_shape=(40, 50), ori_shape=(80, 50), scale_factor=(0.5, 0.5)))
    announce_sizes(x, [sample], is_tested=False)
    assert announced_sizes(x) is None


@pytest.mark.parametrize('samples', [None, 'ab', [1], [None], [object()]])
def test_samples_of_another_kind_say_nothing(samples: Any) -> None:
    x = torch.zeros(1, 3, 40, 50)
    announce_sizes(x, samples, is_tested=True)
    assert announced_sizes(x) is None


def test_it_can_be_switched_off() -> None:
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = model_of('maskrcnn_cvttiny_fpn_shapes', **{'model.backbone.ignore_padding': False}).eval()
        watched = Watched(model)
        with torch.no_grad():
            model.test_step(detection_batch())
        with pytest.raises(AssertionError):
            watched.assert_padding_had_no_effect()


@pytest.fixture
def alone_in_its_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures('alone_in_its_group')
@pytest.mark.parametrize('is_trained', [False, True])
def test_a_model_in_distributed_training_is_told_the_sizes(detector: nn.Module, is_trained: bool) -> None:
    without_drop_path(detector)
    model = MMDistributedDataParallel(detector, broadcast_buffers=False).train(is_trained)
    before = copy.deepcopy(detector.backbone)
    watched = Watched(detector)
    if is_trained:
        model.train_step(detection_batch(), OptimWrapper(torch.optim.SGD(detector.parameters(), lr=0.01)))
    else:
        with torch.no_grad():
            model.test_step(detection_batch())
    watched.assert_padding_had_no_effect(before=before)


@pytest.mark.usefixtures('detector')  # whose scope it is
def test_test_time_augmentation_is_told_the_sizes_of_every_version() -> None:
    without_masks = {'model.roi_head.mask_head': None, 'model.roi_head.mask_roi_extractor': None}
    detector = model_of('maskrcnn_cvttiny_fpn_shapes', **without_masks).eval()
    sizes = [SIZES, [(height + 20, width // 2) for height, width in SIZES]]
    batches = [detection_batch(sizes_of_version) for sizes_of_version in sizes]
    for version in batches:
        for sample in version['data_samples']:
            sample.set_metainfo(dict(flip=False, flip_direction=None))
    model = DetTTAModel(module=detector, tta_cfg=ConfigDict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=9))
    detector.roi_head.test_cfg.score_thr = 0.0
    seen: list[tuple[torch.Tensor, tuple[torch.Tensor, ...]]] = []
    detector.backbone.register_forward_hook(lambda module, args, maps: seen.append((args[0], maps)))
    with torch.no_grad():
        merged = model.test_step({name: [version[name] for version in batches] for name in batches[0]})
    assert len(merged) == len(SIZES)
    assert [announced_sizes(images) for images, _ in seen] == sizes


def test_the_inferencer_of_detectors_tells_the_sizes() -> None:
    """With its default, pictures of several sizes in a batch."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in [(64, 96), (90, 50)]]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that it has no weights
        inferencer = DetInferencer(str(ROOT / 'configs/maskrcnn_cvttiny_fpn_shapes.py'), device='cpu', palette='random')
    watched = Watched(inferencer.model)
    inferencer(pictures, batch_size=2, no_save_vis=True)
    watched.assert_padding_had_no_effect([(107, 160), (160, 89)])
