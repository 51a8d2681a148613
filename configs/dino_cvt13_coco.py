_base_ = [
    '_base_/models/dino_cvt.py',
    '_base_/datasets/coco_detection_detr.py',
    '_base_/schedules/adamw_1x.py',
    '_base_/runtime/mmdet_runtime.py',
]

optim_wrapper = dict(
    constructor='LayerDecayOptimWrapperConstructor',  # no weight decay on the backbone's norms and cls token
    optimizer=dict(weight_decay=1e-4),
    clip_grad=dict(max_norm=0.1, norm_type=2),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))),
)
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[11], gamma=0.1)]
