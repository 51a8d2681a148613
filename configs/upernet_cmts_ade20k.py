_base_ = [
    '_base_/models/upernet_cmt.py',
    '_base_/datasets/ade20k.py',
    '_base_/schedules/adamw_160k.py',
    '_base_/runtime/mmseg_runtime.py',
]

# No weight decay on the position bias.
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(relative_pos=dict(decay_mult=0.0))))
