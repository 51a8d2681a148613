# UperNet (Xiao et al., arXiv 1807.10221) on CMT's strides 4/8/16/32; the auxiliary head is on stride 16.
_base_ = 'upernet_cvt.py'

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
    decode_head=dict(in_channels=[64, 128, 256, 512], in_index=[0, 1, 2, 3]),
    auxiliary_head=dict(in_channels=256, in_index=2),
)
