# Semantic FPN (Kirillov et al., arXiv 1901.02446) on CvT's strides 4/8/16.
_base_ = 'upernet_cvt.py'

model = dict(
    neck=dict(type='FPN', in_channels=[64, 192, 384], out_channels=256, num_outs=3),
    decode_head=dict(
        _delete_=True,
        type='FPNHead',
        in_channels=[256, 256, 256],
        in_index=[0, 1, 2],
        feature_strides=[4, 8, 16],
        channels=128,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=_base_.norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=None,
)
