_base_ = 'mask2former_cvt13_ade20k.py'

model = dict(backbone=dict(arch='cvt-21', init_cfg=dict(checkpoint='cvt-21-384x384-in22k')))
