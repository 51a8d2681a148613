_base_ = ['_base_/nuclei.py', '_base_/swinsmall.py']

model = dict(backbone=dict(_delete_=True, **_base_.backbone))
