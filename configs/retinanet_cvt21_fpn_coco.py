_base_ = 'retinanet_cvt13_fpn_coco.py'

model = dict(backbone=dict(arch='cvt-21', init_cfg=dict(checkpoint='cvt-21-384x384-in22k')))
