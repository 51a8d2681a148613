_base_ = [
    '_base_/models/upernet_cvt.py',
    '_base_/datasets/cityscapes.py',
    '_base_/schedules/adamw_80k.py',
    '_base_/runtime/mmseg_runtime.py',
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(num_classes=19),
    auxiliary_head=dict(num_classes=19),
    # Whole pictures have four times the keys of the crops that are trained on (docs/backbone.md, "Other sizes than in
    # training"); crops that overlap by a third.
    test_cfg=dict(mode='slide', crop_size=_base_.crop_size, stride=(341, 683)),
)
