_base_ = [
    '_base_/models/maskrcnn_cmt_fpn.py',
    '_base_/datasets/coco_instance.py',
    '_base_/schedules/adamw_1x.py',
    '_base_/runtime/mmdet_runtime.py',
]

# No weight decay on the position bias.
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(relative_pos=dict(decay_mult=0.0))))
