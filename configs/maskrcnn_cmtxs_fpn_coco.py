_base_ = 'maskrcnn_cmts_fpn_coco.py'

model = dict(
    backbone=dict(arch='cmt-xs', init_cfg=dict(checkpoint='cmt-xs-192x192-in1k')),
    neck=dict(in_channels=[52, 104, 208, 416]),
)
