# Mask R-CNN on CMT's strides 4/8/16/32; the FPN adds 64 by pooling, for the RPN.
_base_ = 'maskrcnn_cvt_fpn.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='CMT',
        arch='cmt-s',
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.1,
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint='cmt-s-224x224-in1k'),
    ),
    neck=dict(in_channels=[64, 128, 256, 512], add_extra_convs=False),
)
