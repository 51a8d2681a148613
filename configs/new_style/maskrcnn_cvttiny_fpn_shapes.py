# The demo's Mask R-CNN in mmengine's new style, a pure Python config: types are classes and no default scope is set.
# Everything that tools do with the other configs works with such ones too.
from mmcv.ops import RoIAlign, nms
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import AspectRatioBatchSampler, CocoDataset
from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs, RandomFlip, Resize
from mmdet.engine.hooks import DetVisualizationHook
from mmdet.evaluation import CocoMetric
from mmdet.models import (
    FPN,
    DetDataPreprocessor,
    FCNMaskHead,
    MaskRCNN,
    RPNHead,
    Shared2FCBBoxHead,
    SingleRoIExtractor,
    StandardRoIHead,
)
from mmdet.models.losses import CrossEntropyLoss, L1Loss
from mmdet.models.task_modules import AnchorGenerator, DeltaXYWHBBoxCoder, MaxIoUAssigner, RandomSampler
from mmdet.visualization import DetLocalVisualizer
from mmengine.dataset import DefaultSampler
from mmengine.hooks import CheckpointHook, DistSamplerSeedHook, IterTimerHook, LoggerHook, ParamSchedulerHook
from mmengine.model import PretrainedInit
from mmengine.optim import CosineAnnealingLR, LinearLR, OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, LogProcessor, TestLoop, ValLoop
from mmengine.visualization import LocalVisBackend
from torch.optim import AdamW

from cvt_dense import CvT
from cvt_dense.engine.layer_decay import LayerDecayOptimWrapperConstructor
from cvt_dense.visualization.hooks import CurvesHook, SamplesHook

norm_cfg = dict(type='GN', num_groups=16, requires_grad=True)  # names of layers are strings in either style
box_coder = dict(type=DeltaXYWHBBoxCoder, target_means=[0.0] * 4)
roi_extractor = dict(type=SingleRoIExtractor, out_channels=64, featmap_strides=[4, 8, 16], finest_scale=28)
assigner = dict(type=MaxIoUAssigner, match_low_quality=True, ignore_iof_thr=-1)
proposals = dict(nms_pre=200, max_per_img=100, nms=dict(type=nms, iou_threshold=0.7), min_bbox_size=0)
model = dict(
    type=MaskRCNN,
    data_preprocessor=dict(
        type=DetDataPreprocessor,
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_mask=True,
        pad_size_divisor=32,
    ),
    backbone=dict(
        type=CvT,
        arch=dict(embed_dims=[32, 64, 128], num_heads=[1, 2, 4], depths=[1, 1, 2]),
        init_cfg=dict(type=PretrainedInit, checkpoint='cvt-tiny-shapes'),
    ),
    neck=dict(type=FPN, in_channels=[32, 64, 128], out_channels=64, num_outs=3, norm_cfg=norm_cfg),
    rpn_head=dict(
        type=RPNHead,
        in_channels=64,
        feat_channels=64,
        anchor_generator=dict(type=AnchorGenerator, scales=[8], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16]),
        bbox_coder=dict(**box_coder, target_stds=[1.0] * 4),
        loss_cls=dict(type=CrossEntropyLoss, use_sigmoid=True, loss_weight=1.0),
        loss_bbox=dict(type=L1Loss, loss_weight=1.0),
    ),
    roi_head=dict(
        type=StandardRoIHead,
        bbox_roi_extractor=dict(roi_layer=dict(type=RoIAlign, output_size=7, sampling_ratio=0), **roi_extractor),
        bbox_head=dict(
            type=Shared2FCBBoxHead,
            in_channels=64,
            fc_out_channels=256,
            roi_feat_size=7,
            num_classes=5,
            bbox_coder=dict(**box_coder, target_stds=[0.1, 0.1, 0.2, 0.2]),
            reg_class_agnostic=False,
            loss_cls=dict(type=CrossEntropyLoss, use_sigmoid=False, loss_weight=1.0),
            loss_bbox=dict(type=L1Loss, loss_weight=1.0),
        ),
        mask_roi_extractor=dict(roi_layer=dict(type=RoIAlign, output_size=14, sampling_ratio=0), **roi_extractor),
        mask_head=dict(
            type=FCNMaskHead,
            num_convs=2,
            in_channels=64,
            conv_out_channels=64,
            num_classes=5,
            norm_cfg=norm_cfg,
            loss_mask=dict(type=CrossEntropyLoss, use_mask=True, loss_weight=1.0),
        ),
    ),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3, **assigner),
            sampler=dict(type=RandomSampler, num=64, pos_fraction=0.5, neg_pos_ub=-1, add_gt_as_proposals=False),
            allowed_border=-1,
            pos_weight=-1,
            debug=False,
        ),
        rpn_proposal=proposals,
        rcnn=dict(
            assigner=dict(pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5, **assigner),
            sampler=dict(type=RandomSampler, num=48, pos_fraction=0.33, neg_pos_ub=-1, add_gt_as_proposals=True),
            mask_size=28,
            pos_weight=-1,
            debug=False,
        ),
    ),
    test_cfg=dict(
        rpn=proposals,
        rcnn=dict(score_thr=0.05, nms=dict(type=nms, iou_threshold=0.5), max_per_img=100, mask_thr_binary=0.5),
    ),
)

data_root = 'data/shapes'
data_hint = 'make it: python tools/make_shapes.py --out data/shapes'
metainfo = dict(
    classes=('ellipse', 'rectangle', 'triangle', 'star', 'ring'),
    palette=[(60, 150, 255), (255, 160, 40), (70, 210, 110), (245, 80, 150), (170, 110, 255)],
)
load = [dict(type=LoadImageFromFile), dict(type=LoadAnnotations, with_bbox=True, with_mask=True)]
flip = dict(type=RandomFlip, prob=[0.3, 0.3], direction=['horizontal', 'vertical'])
test_pipeline = [
    load[0],
    dict(type=Resize, scale=(160, 160), keep_ratio=True),
    load[1],
    dict(type=PackDetInputs, meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type=DefaultSampler, shuffle=True),
    batch_sampler=dict(type=AspectRatioBatchSampler),
    dataset=dict(
        type=CocoDataset,
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='images/training/'),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=[*load, flip, dict(type=PackDetInputs)],
    ),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(
        type=CocoDataset,
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='images/validation/'),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type=CocoMetric,
    metric=['bbox', 'segm'],
    classwise=True,
    ann_file=f'{data_root}/annotations/instances_val.json',
)
test_evaluator = val_evaluator

max_epochs = 8
train_cfg = dict(type=EpochBasedTrainLoop, max_epochs=max_epochs, val_interval=2)
val_cfg = dict(type=ValLoop)
test_cfg = dict(type=TestLoop)
optim_wrapper = dict(
    type=OptimWrapper,
    constructor=LayerDecayOptimWrapperConstructor,
    optimizer=dict(type=AdamW, lr=6e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=10.0),
)
param_scheduler = [
    dict(type=LinearLR, start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type=CosineAnnealingLR, by_epoch=True, begin=0, end=max_epochs, convert_to_iter_based=True),
]
auto_scale_lr = dict(enable=False, base_batch_size=8)

default_scope = None
default_hooks = dict(
    timer=dict(type=IterTimerHook),
    logger=dict(type=LoggerHook, interval=20, log_metric_by_epoch=False),
    param_scheduler=dict(type=ParamSchedulerHook),
    checkpoint=dict(type=CheckpointHook, interval=1, max_keep_ckpts=1, save_best='coco/bbox_mAP'),
    sampler_seed=dict(type=DistSamplerSeedHook),
    visualization=dict(type=DetVisualizationHook),
    curves=dict(type=CurvesHook),
    samples=dict(type=SamplesHook, interval=1),
)
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
visualizer = dict(type=DetLocalVisualizer, vis_backends=[dict(type=LocalVisBackend)], name='visualizer', alpha=0.6)
log_processor = dict(type=LogProcessor, window_size=50, by_epoch=True)
log_level = 'INFO'
load_from = None
resume = False
