"""The toolkits' own configs with CvT or CMT as the backbone: one of each family of heads, changed as a user would."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

from cvt_dense.engine import fill_in_channels

ARCHS = {
    'CvT': dict(embed_dims=[16, 48, 96], num_heads=[1, 3, 6], depths=[1, 1, 1]),
    'CMT': dict(
        embed_dims=[16, 32, 48, 96], num_heads=[1, 2, 3, 6], depths=[1, 1, 1, 1], stem_channels=8, pretrain_size=64
    ),
}


OF_THE_MAP = 'of the map'


@dataclass(frozen=True)
class Family:
    """A kind of model that a toolkit has.

    Attributes:
        toolkit: ``'mmdet'`` or ``'mmseg'``.
        name: The method's.
        config: One config of it, below the toolkit's ``configs``.
        out_indices: Maps that replace those of the config's backbone; found by how many it has, if not given.
        options: What has to change besides ``in_channels``, which are filled in: values by the settings' dotted names;
            ``OF_THE_MAP`` is the number of channels of the one map.
        error: What the family stops with, where it does, and in which file: a pattern.
        size: Height and width of the pictures that it is trained with.
        needs: A package that it imports besides.
        masks: Whether its annotations may hold masks.
        prediction_error: What prediction stops with, where it does and training does not: a pattern.
    """

    toolkit: str
    name: str
    config: str
    out_indices: tuple[int, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    size: tuple[int, int] = (96, 128)
    needs: str | None = None
    masks: bool = True
    prediction_error: str | None = None

    def __str__(self) -> str:
        return f'{self.toolkit}: {self.name}'


def folder(toolkit: str) -> Path | None:
    """Where an installed toolkit keeps its configs; None if it has none."""
    spec = importlib.util.find_spec(toolkit)
    path = Path(spec.submodule_search_locations[0]) / '.mim/configs' if spec else None
    return path if path and path.is_dir() else None


def adapted(family: Family, backbone: str = 'CvT') -> ConfigDict:
    """The family's model, on a small backbone of ours."""
    model = Config.fromfile(folder(family.toolkit) / family.config, import_custom_modules=False).model
    _without_checkpoints(model)
    for name in ('train_cfg', 'test_cfg'):
        _fewer_proposals(model.get(name))
    for name, value in family.options.items():
        *parents, last = name.split('.')
        at = model
        for parent in parents:
            at = at[int(parent)] if isinstance(at, list) else at[parent]
        at[last] = ARCHS[backbone]['embed_dims'][family.out_indices[0]] if value == OF_THE_MAP else value
    if 'teacher_config' in model:  # found from the toolkit's root otherwise
        model.teacher_config = str(folder(family.toolkit).parent / model.teacher_config)
    indices = family.out_indices or _like(model)
    model.backbone = ConfigDict(type=backbone, arch=ARCHS[backbone], out_indices=indices)
    fill_in_channels(dict(model=model, default_scope=family.toolkit))
    preprocessor = model.data_preprocessor
    preprocessor.pop('batch_augments', None)  # what is left of it is there to make large pictures
    if 'size' in preprocessor:
        preprocessor['size'] = family.size
    return model


def build(family: Family, backbone: str = 'CvT') -> nn.Module:
    """The family's model with random weights."""
    if family.toolkit == 'mmdet':
        from mmdet.registry import MODELS
    else:
        from mmseg.registry import MODELS
    with in_scope(family):
        model = revert_sync_batchnorm(MODELS.build(adapted(family, backbone)))
        model.init_weights()
        return model


def train_step(family: Family, model: nn.Module) -> Tensor:
    """The loss of two pictures, after its backward pass."""
    with in_scope(family), _mixtures_of_equals(family):
        model.train()
        losses = model(**model.data_preprocessor(training_batch(family), True), mode='loss')
        loss, _ = model.parse_losses(losses)
        loss.backward()
    return loss


def _mixtures_of_equals(family: Family) -> AbstractContextManager[Any]:
    """Lets heads that tell good candidates from bad ones by a mixture of two Gaussians of their losses fit it.

    Before they have learnt anything the losses are nearly equal, and whether a fit is found is a matter of rounding.
    """
    if family.needs != 'sklearn':
        return nullcontext()
    from sklearn import mixture

    return patch.object(mixture, 'GaussianMixture', partial(mixture.GaussianMixture, reg_covar=1e-3))


def training_batch(family: Family) -> dict[str, list[Any]]:
    """Two pictures as a data loader gives them."""
    progress = MessageHub.get_current_instance()  # runs tell heads by it how far they are
    progress.update_info('epoch', 0)
    progress.update_info('iter', 0)
    return _data(family, family.size, 2)


def predict(family: Family, model: nn.Module) -> Sequence[Any]:
    """What the model predicts for a picture with odd sides."""
    with in_scope(family), torch.no_grad():
        model.eval()
        height, width = family.size
        return model.test_step(_data(family, (height - 21, width - 27), 1))


@contextmanager
def wrong_strides(family: Family, model: nn.Module) -> Iterator[list[str]]:
    """Collects the heads that believe in other strides than those of the maps that they get."""
    found: list[str] = []
    hooks = []

    def check(name: str, strides: Sequence[int], maps: Sequence[Tensor]) -> None:
        actual = [family.size[1] / x.shape[-1] for x in maps]
        # Maps are rounded up, and more so the smaller they are.
        if any(x.shape[-1] > 1 and not 0.7 < stride / a < 1.5 for stride, a, x in zip(strides, actual, maps)):
            found.append(f'{name} believes in strides {strides}, maps are at {actual}')

    for name, module in model.named_modules():
        strides = _strides(module)
        if strides and 'teacher' not in name:
            hooks.append(
                module.register_forward_pre_hook(
                    lambda _, args, name=name, strides=strides: (
                        check(name, strides, args[0])
                        if args and isinstance(args[0], (list, tuple)) and isinstance(args[0][0], Tensor)
                        else None
                    )
                )
            )
    yield found
    for hook in hooks:
        hook.remove()


@contextmanager
def in_scope(family: Family) -> Iterator[None]:
    """Names of layers are looked up in the family's toolkit first."""
    with DefaultScope.overwrite_default_scope(family.toolkit):
        yield


def _strides(module: nn.Module) -> list[int]:
    generator = getattr(module, 'prior_generator', None) or getattr(module, 'anchor_generator', None)
    strides = getattr(generator, 'strides', None) or getattr(module, 'featmap_strides', None) or ()
    return [stride[0] if isinstance(stride, (list, tuple)) else stride for stride in strides]


def _without_checkpoints(config: Any) -> None:
    if isinstance(config, dict):
        for key in ('pretrained', 'teacher_ckpt'):
            if key in config:
                config[key] = None
        if 'Pretrained' in str(config.get('init_cfg')):
            config['init_cfg'] = None
        for value in config.values():
            _without_checkpoints(value)
    elif isinstance(config, (list, tuple)):
        for value in config:
            _without_checkpoints(value)


def _fewer_proposals(config: Any) -> None:
    """What the pictures are small for, too: the time that a step takes."""
    if isinstance(config, dict):
        for key, most in dict(max_per_img=20, nms_pre=100).items():
            if key in config:
                config[key] = min(config[key], most)
        if 'num' in config.get('sampler', ()):
            config.sampler.num = min(config.sampler.num, 32)
        for value in config.values():
            _fewer_proposals(value)
    elif isinstance(config, (list, tuple)):
        for value in config:
            _fewer_proposals(value)


def _like(model: ConfigDict) -> tuple[int, ...]:
    """As many maps as the backbone has, and those at its strides."""
    neck = model.get('neck')
    first = neck[0] if isinstance(neck, list) else neck
    if first and isinstance(first.in_channels, (list, tuple)):
        count = len(first.in_channels)
    else:
        count = len(model.backbone.get('out_indices', (0, 1, 2, 3)))
    return tuple(range(4 - count, 4))


def _data(family: Family, size: tuple[int, int], count: int) -> dict[str, list[Any]]:
    height, width = size
    images = list(torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8))
    sample = _detection if family.toolkit == 'mmdet' else _segmentation
    return dict(inputs=images, data_samples=[sample(family, height, width) for _ in range(count)])


def _meta(height: int, width: int) -> dict[str, Any]:
    shape = (height, width)
    return dict(
        img_id=0,
        img_path='',
        img_shape=shape,
        ori_shape=shape,
        pad_shape=shape,
        batch_input_shape=shape,
        scale_factor=(1.0, 1.0),
        flip=False,
        flip_direction=None,
        border=(0, height, 0, width),
    )


def _detection(family: Family, height: int, width: int) -> Any:
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    boxes = torch.tensor([[4.0, 6, 60, 70], [30, 20, 70, 50], [10, 40, 26, 60]])
    masks = torch.zeros(len(boxes), height, width, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist()):
        mask[top:bottom, left:right] = 1
    sample = DetDataSample(metainfo=_meta(height, width))
    labels = torch.zeros(len(boxes), dtype=torch.long)
    sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
    if family.masks:
        sample.gt_instances.masks = BitmapMasks(masks.numpy(), height, width)
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    step = 8 if 'htc' in family.config or 'scnet' in family.config else 1  # their data sets shrink it
    sample.gt_sem_seg = PixelData(sem_seg=torch.zeros(1, height // step, width // step, dtype=torch.long))
    return sample


def _segmentation(family: Family, height: int, width: int) -> Any:
    from mmseg.structures import SegDataSample

    sample = SegDataSample(metainfo=_meta(height, width))
    sample.gt_sem_seg = PixelData(data=torch.randint(0, 8, (1, height, width)))
    return sample


C4 = {'roi_head.shared_head': None, 'roi_head.bbox_roi_extractor.roi_layer.output_size': 7}
GUIDED = dict(prediction_error='masked_im2col_forward_impl: implementation for device cpu')
ONE_MAP = {f'{head}.in_index': 0 for head in ('decode_head', *(f'auxiliary_head.{i}' for i in range(3)))}
PADDED = {'data_preprocessor.pad_size_divisor': 32}  # which the config's pipelines do


def _of(toolkit: str, configs: Mapping[str, str | tuple[Any, ...]]) -> list[Family]:
    return [
        Family(toolkit, name, entry) if isinstance(entry, str) else Family(toolkit, name, entry[0], **entry[1])
        for name, entry in configs.items()
    ]


DETECTION = _of(
    'mmdet',
    {
        'Faster R-CNN': 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
        'Mask R-CNN': 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
        'Cascade Mask R-CNN': 'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
        'RPN': 'rpn/rpn_r50_fpn_1x_coco.py',
        'HTC': 'htc/htc_r50_fpn_1x_coco.py',
        'Grid R-CNN': 'grid_rcnn/grid-rcnn_r50_fpn_gn-head_2x_coco.py',
        'Libra R-CNN': 'libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco.py',
        'Libra RetinaNet': 'libra_rcnn/libra-retinanet_r50_fpn_1x_coco.py',
        'Mask Scoring R-CNN': 'ms_rcnn/ms-rcnn_r50_fpn_1x_coco.py',
        'PointRend': 'point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py',
        'Double-Head R-CNN': 'double_heads/dh-faster-rcnn_r50_fpn_1x_coco.py',
        'Dynamic R-CNN': 'dynamic_rcnn/dynamic-rcnn_r50_fpn_1x_coco.py',
        'SABL Faster R-CNN': 'sabl/sabl-faster-rcnn_r50_fpn_1x_coco.py',
        'SABL RetinaNet': 'sabl/sabl-retinanet_r50_fpn_1x_coco.py',
        'Seesaw loss': 'seesaw_loss/mask-rcnn_r50_fpn_seesaw-loss_random-ms-2x_lvis-v1.py',
        'LVIS': 'lvis/mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1.py',
        'CARAFE': (
            'carafe/mask-rcnn_r50_fpn-carafe_1x_coco.py',
            dict(error='carafe_forward_impl: implementation for device cpu'),
        ),
        'GRoIE': 'groie/mask-rcnn_r50_fpn_groie_1x_coco.py',
        'PAFPN': 'pafpn/faster-rcnn_r50_pafpn_1x_coco.py',
        'PISA': 'pisa/faster-rcnn_r50_fpn_pisa_1x_coco.py',
        'SCNet': 'scnet/scnet_r50_fpn_1x_coco.py',
        'Panoptic FPN': 'panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py',
        'CrowdDet': 'crowddet/crowddet-rcnn_r50_fpn_8xb2-30e_crowdhuman.py',
        'Cascade RPN': 'cascade_rpn/cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco.py',
        'Guided Anchoring Faster R-CNN': (
            'guided_anchoring/ga-faster-rcnn_r50_fpn_1x_coco.py',
            GUIDED,
        ),
        'Guided Anchoring RetinaNet': (
            'guided_anchoring/ga-retinanet_r50_fpn_1x_coco.py',
            GUIDED,
        ),
        'Sparse R-CNN': 'sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py',
        # Boxes of an untrained head lie beyond the picture, and pasting masks on a CPU does not take those.
        'QueryInst': (
            'queryinst/queryinst_r50_fpn_1x_coco.py',
            dict(
                options={'test_cfg.rcnn.max_per_img': 100},
                prediction_error='upper bound and .* bound inconsistent with step sign',
            ),
        ),
        'Faster R-CNN C4': ('faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py', dict(out_indices=(2,), options=C4)),
        'Faster R-CNN DC5': ('faster_rcnn/faster-rcnn_r50-caffe-dc5_1x_coco.py', dict(out_indices=(2,))),
        'Group normalisation': 'gn/mask-rcnn_r50_fpn_gn-all_2x_coco.py',
        'FPG': 'fpg/faster-rcnn_r50_fpg_crop640-50e_coco.py',
        'RetinaNet': 'retinanet/retinanet_r50_fpn_1x_coco.py',
        'FCOS': 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
        'ATSS': 'atss/atss_r50_fpn_1x_coco.py',
        'GFL': 'gfl/gfl_r50_fpn_1x_coco.py',
        'TOOD': 'tood/tood_r50_fpn_1x_coco.py',
        'VFNet': 'vfnet/vfnet_r50_fpn_1x_coco.py',
        'PAA': ('paa/paa_r50_fpn_1x_coco.py', dict(needs='sklearn', size=(192, 256))),
        'FoveaBox': 'foveabox/fovea_r50_fpn_4xb4-1x_coco.py',
        'RepPoints': 'reppoints/reppoints-moment_r50_fpn_1x_coco.py',
        'FSAF': 'fsaf/fsaf_r50_fpn_1x_coco.py',
        'FreeAnchor': 'free_anchor/freeanchor_r50_fpn_1x_coco.py',
        'GHM': 'ghm/retinanet_r50_fpn_ghm-1x_coco.py',
        'AutoAssign': 'autoassign/autoassign_r50-caffe_fpn_1x_coco.py',
        'DDOD': ('ddod/ddod_r50_fpn_1x_coco.py', dict(size=(288, 384))),
        'LD': 'ld/ld_r18-gflv1-r101_fpn_1x_coco.py',
        'LAD': ('lad/lad_r50-paa-r101_fpn_2xb8_coco_1x.py', dict(needs='sklearn', size=(192, 256))),
        'NAS-FCOS': 'nas_fcos/nas-fcos_r50-caffe_fpn_nashead-gn-head_4xb4-1x_coco.py',
        'NAS-FPN': 'nas_fpn/retinanet_r50_nasfpn_crop640-50e_coco.py',
        'DyHead': 'dyhead/atss_r50_fpn_dyhead_1x_coco.py',
        'YOLOF': 'yolof/yolof_r50-c5_8xb8-1x_coco.py',
        'CenterNet, updated': 'centernet/centernet-update_r50-caffe_fpn_ms-1x_coco.py',
        'CenterNet': 'centernet/centernet_r18_8xb16-crop512-140e_coco.py',
        'RTMDet': ('rtmdet/rtmdet_tiny_8xb32-300e_coco.py', dict(options=PADDED, masks=False)),
        'RTMDet-Ins': ('rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py', dict(options=PADDED)),
        'YOLOX': 'yolox/yolox_s_8xb8-300e_coco.py',
        'YOLOv3': 'yolo/yolov3_d53_8xb8-ms-608-273e_coco.py',
        'SOLO': 'solo/solo_r50_fpn_1x_coco.py',
        'Decoupled SOLO': 'solo/decoupled-solo_r50_fpn_1x_coco.py',
        'SOLOv2': 'solov2/solov2_r50_fpn_1x_coco.py',
        'CondInst': 'condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py',
        'BoxInst': 'boxinst/boxinst_r50_fpn_ms-90k_coco.py',
        'YOLACT': 'yolact/yolact_r50_1xb8-55e_coco.py',
        'DETR': 'detr/detr_r50_8xb2-150e_coco.py',
        'Conditional DETR': 'conditional_detr/conditional-detr_r50_8xb2-50e_coco.py',
        'DAB-DETR': 'dab_detr/dab-detr_r50_8xb2-50e_coco.py',
        'Deformable DETR': 'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
        'DINO': ('dino/dino-4scale_r50_8xb2-12e_coco.py', dict(size=(256, 320))),
        'DDQ': ('ddq/ddq-detr-4scale_r50_8xb2-12e_coco.py', dict(size=(256, 320))),
        'Mask2Former': 'mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py',
        'Mask2Former, instances': 'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
        'MaskFormer': 'maskformer/maskformer_r50_ms-16xb1-75e_coco.py',
        'Deformable DETR, two stages': (
            'deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py',
            dict(size=(256, 320)),
        ),
        'Cascade R-CNN': 'cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py',
    },
)

SEGMENTATION = _of(
    'mmseg',
    {
        'FCN': 'fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py',
        'PSPNet': 'pspnet/pspnet_r50-d8_4xb4-80k_ade20k-512x512.py',
        'DeepLabV3': 'deeplabv3/deeplabv3_r50-d8_4xb4-80k_ade20k-512x512.py',
        'DeepLabV3+': 'deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512.py',
        'DANet': 'danet/danet_r50-d8_4xb4-80k_ade20k-512x512.py',
        'CCNet': 'ccnet/ccnet_r50-d8_4xb4-80k_ade20k-512x512.py',
        'GCNet': 'gcnet/gcnet_r50-d8_4xb4-80k_ade20k-512x512.py',
        'EncNet': 'encnet/encnet_r50-d8_4xb4-80k_ade20k-512x512.py',
        'ISANet': 'isanet/isanet_r50-d8_4xb4-80k_ade20k-512x512.py',
        'DMNet': 'dmnet/dmnet_r50-d8_4xb4-80k_ade20k-512x512.py',
        'APCNet': 'apcnet/apcnet_r50-d8_4xb4-80k_ade20k-512x512.py',
        'ANN': 'ann/ann_r50-d8_4xb4-80k_ade20k-512x512.py',
        'PSANet': 'psanet/psanet_r50-d8_4xb4-80k_ade20k-512x512.py',
        'Non-local': 'nonlocal_net/nonlocal_r50-d8_4xb4-80k_ade20k-512x512.py',
        'DNLNet': 'dnlnet/dnl_r50-d8_4xb4-80k_ade20k-512x512.py',
        'EMANet': 'emanet/emanet_r50-d8_4xb2-80k_cityscapes-512x1024.py',
        'UPerNet': 'upernet/upernet_r50_4xb4-80k_ade20k-512x512.py',
        # Its second head takes the first one's regions, which have to be of the same map.
        'OCRNet': (
            'ocrnet/ocrnet_r101-d8_4xb2-40k_cityscapes-512x1024.py',
            dict(options={'decode_head.0.in_index': 3}),
        ),
        'Semantic FPN': 'sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py',
        'PointRend': 'point_rend/pointrend_r50_4xb4-160k_ade20k-512x512.py',
        'SegFormer': 'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
        'Segmenter': ('segmenter/segmenter_vit-s_mask_8xb1-160k_ade20k-512x512.py', dict(out_indices=(2,))),
        'Segmenter, FCN': (
            'segmenter/segmenter_vit-s_fcn_8xb1-160k_ade20k-512x512.py',
            dict(out_indices=(2,), options={'decode_head.channels': OF_THE_MAP}),
        ),
        'K-Net, FCN': 'knet/knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512.py',
        'K-Net, PSPNet': 'knet/knet-s3_r50-d8_pspnet_8xb2-adamw-80k_ade20k-512x512.py',
        'K-Net, DeepLabV3': 'knet/knet-s3_r50-d8_deeplabv3_8xb2-adamw-80k_ade20k-512x512.py',
        'K-Net, UPerNet': 'knet/knet-s3_r50-d8_upernet_8xb2-adamw-80k_ade20k-512x512.py',
        'FastFCN': 'fastfcn/fastfcn_r50-d32_jpu_psp_4xb4-80k_ade20k-512x512.py',
        'Mask2Former': 'mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
        'MaskFormer': 'maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512.py',
        'MaskFormer on Swin': 'maskformer/maskformer_swin-t_upernet_8xb2-160k_ade20k-512x512.py',
        'SegNeXt': 'segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512.py',
        'SETR-PUP': ('setr/setr_vit-l_pup_8xb2-160k_ade20k-512x512.py', dict(out_indices=(2,), options=ONE_MAP)),
        # It reads the tokens of a plain vision transformer.
        'DPT': ('dpt/dpt_vit-b16_8xb2-160k_ade20k-512x512.py', dict(error=r'expand\(torch.*dpt_head.py')),
        'UPerNet on Swin': 'swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py',
        'UPerNet on ConvNeXt': 'convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py',
        'Twins': 'twins/twins_pcpvt-s_fpn_fpnhead_8xb4-80k_ade20k-512x512.py',
    },
)

FAMILIES = DETECTION + SEGMENTATION
