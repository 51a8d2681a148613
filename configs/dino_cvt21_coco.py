_base_ = 'dino_cvt13_coco.py'

model = dict(backbone=dict(arch='cvt-21', init_cfg=dict(checkpoint='cvt-21-384x384-in22k')))
