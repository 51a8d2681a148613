# Trains the demo's small backbone on segmentation of the shapes: the first half of its pre-training (docs/demo.md).
_base_ = [
    '_base_/models/upernet_cvt.py',
    '_base_/datasets/shapes_semantic.py',
    '_base_/schedules/adamw_160k.py',
    '_base_/runtime/mmseg_runtime.py',
]
norm_cfg = dict(type='GN', num_groups=16, requires_grad=True)
model = dict(
    data_preprocessor=dict(size=(160, 160)),
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=[32, 64, 128], num_heads=[1, 2, 4], depths=[1, 1, 2]),
        norm_eval=False,
        init_cfg=None,
    ),
    decode_head=dict(in_channels=[32, 64, 128], channels=64, num_classes=6, norm_cfg=norm_cfg),
    auxiliary_head=dict(in_channels=128, channels=64, num_classes=6, norm_cfg=norm_cfg),
)

max_iters = 2500
train_cfg = dict(max_iters=max_iters, val_interval=500)
optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=0.05))
auto_scale_lr = dict(base_batch_size=16)  # the images in a batch that the rate is for
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=100, end=max_iters),
]
default_hooks = dict(logger=dict(interval=50), checkpoint=dict(interval=500, max_keep_ckpts=1))
