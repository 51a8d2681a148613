# The demo: Mask R-CNN with a small CvT on 160-pixel scenes, small enough to train on two CPU cores. The heads are
# narrow and use few proposals; GroupNorm helps neck and heads, which train from scratch on a short schedule.
_base_ = [
    '_base_/models/maskrcnn_cvt_fpn.py',
    '_base_/datasets/shapes_instance.py',
    '_base_/schedules/adamw_1x.py',
    '_base_/runtime/mmdet_runtime.py',
]
norm_cfg = dict(type='GN', num_groups=16, requires_grad=True)
proposals = dict(nms_pre=200, max_per_img=100)
roi_extractor = dict(out_channels=64, featmap_strides=[4, 8, 16], finest_scale=28)

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=[32, 64, 128], num_heads=[1, 2, 4], depths=[1, 1, 2]),
        init_cfg=dict(checkpoint='cvt-tiny-shapes'),
    ),
    # The largest anchors, 128 pixels on stride 16, cover the largest shapes: no extra levels.
    neck=dict(in_channels=[32, 64, 128], out_channels=64, num_outs=3, add_extra_convs=False, norm_cfg=norm_cfg),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(strides=[4, 8, 16])),
    roi_head=dict(
        bbox_roi_extractor=roi_extractor,
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=5),
        mask_roi_extractor=roi_extractor,
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=64, num_classes=5, norm_cfg=norm_cfg),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)), rpn_proposal=proposals, rcnn=dict(sampler=dict(num=48, pos_fraction=0.33))
    ),
    test_cfg=dict(rpn=proposals),
)

max_epochs = 8
train_cfg = dict(max_epochs=max_epochs, val_interval=2)
optim_wrapper = dict(optimizer=dict(lr=6e-4), clip_grad=dict(max_norm=10.0))
auto_scale_lr = dict(base_batch_size=8)  # the images in a batch that the rate is for
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=max_epochs, convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=1), samples=dict(interval=1))
