_base_ = 'maskrcnn_cvt13_fpn_coco_3x.py'

model = dict(
    backbone=dict(
        arch='cvt-w24',
        drop_path_rate=0.3,
        with_cp=True,  # 277M parameters: recompute activations so that two images fit into memory
        init_cfg=dict(checkpoint='cvt-w24-384x384-in22k'),
    ),
    neck=dict(in_channels=[192, 768, 1024]),
)
