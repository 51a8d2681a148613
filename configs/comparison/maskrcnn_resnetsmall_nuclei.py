_base_ = ['_base_/nuclei.py', '_base_/resnetsmall.py']

model = dict(backbone=dict(_delete_=True, **_base_.backbone))
