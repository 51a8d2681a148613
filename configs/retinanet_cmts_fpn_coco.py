# The settings of CMT's paper, which are PVT's: AdamW at 1e-4 with a weight decay of 1e-4, 16 images, 12 epochs.
_base_ = [
    '_base_/models/retinanet_cmt_fpn.py',
    '_base_/datasets/coco_detection.py',
    '_base_/schedules/adamw_1x.py',
    '_base_/runtime/mmdet_runtime.py',
]

# No weight decay on the position bias.
optim_wrapper = dict(
    optimizer=dict(weight_decay=1e-4), paramwise_cfg=dict(custom_keys=dict(relative_pos=dict(decay_mult=0.0)))
)
