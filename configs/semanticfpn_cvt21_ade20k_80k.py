_base_ = 'semanticfpn_cvt13_ade20k_80k.py'

model = dict(backbone=dict(arch='cvt-21', init_cfg=dict(checkpoint='cvt-21-384x384-in22k')))
