_base_ = 'upernet_cvt13_cityscapes.py'

model = dict(backbone=dict(arch='cvt-21', init_cfg=dict(checkpoint='cvt-21-384x384-in22k')))
