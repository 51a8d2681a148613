# The last iterations of upernet_cvtsmall_camvid.py, on whole pictures as they are tested (FixRes, Touvron et al., arXiv
# 1906.06423): as many pixels in a batch, a fifth of the learning rate. $CAMVID_WEIGHTS is what the other one wrote.
_base_ = 'upernet_cvtsmall_camvid.py'

load_from = '{{$CAMVID_WEIGHTS:work_dirs/upernet_cvtsmall_camvid/iter_1500.pth}}'
picture_size = (360, 480)

train_pipeline = _base_.train_pipeline
train_pipeline[3].crop_size = picture_size
train_dataloader = dict(batch_size=2, dataset=dict(pipeline=train_pipeline))
model = dict(data_preprocessor=dict(size=picture_size))

optim_wrapper = dict(optimizer=dict(lr=2e-4))
auto_scale_lr = dict(base_batch_size=2)  # the images in a batch that the rate is for
max_iters = 300
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
default_hooks = dict(checkpoint=dict(interval=max_iters))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=20, end=max_iters),
]
