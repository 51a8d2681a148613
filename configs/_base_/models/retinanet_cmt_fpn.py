# RetinaNet (Lin et al., arXiv 1708.02002) on strides 8 to 128; the FPN adds strides 64 and 128.
_base_ = 'retinanet_cvt_fpn.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='CMT',
        arch='cmt-s',
        out_indices=(1, 2, 3),
        drop_path_rate=0.1,
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint='cmt-s-224x224-in1k'),
    ),
    neck=dict(in_channels=[128, 256, 512]),
)
