# Cell nuclei, from scratch on a longer schedule: 256x256 pixels, one class. $NUCLEI_ROOT has
# instances_{train,val}.json and the folders train and val.
_base_ = '../../maskrcnn_cvttiny_fpn_nuclei.py'

model = dict(backbone=dict(norm_eval=False, drop_path_rate=0.0, init_cfg=None))

max_epochs = 16
train_cfg = dict(max_epochs=max_epochs, val_interval=4)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=max_epochs, convert_to_iter_based=True),
]
randomness = dict(seed=0)
