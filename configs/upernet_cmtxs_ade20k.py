_base_ = 'upernet_cmts_ade20k.py'

model = dict(
    backbone=dict(arch='cmt-xs', init_cfg=dict(checkpoint='cmt-xs-192x192-in1k')),
    decode_head=dict(in_channels=[52, 104, 208, 416]),
    auxiliary_head=dict(in_channels=208),
)
