_base_ = ['_base_/camvid.py', '_base_/resnetsmall.py']

model = dict(backbone=dict(_delete_=True, **_base_.backbone))
