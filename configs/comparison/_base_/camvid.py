# CamVid street scenes, from scratch: the small UperNet of the shapes, on crops of 192 pixels. 11 classes, label 0 is
# void. $CAMVID_ROOT has ADE20K's layout.
_base_ = '../../upernet_cvttiny_shapes.py'

data_root = '{{$CAMVID_ROOT:data/camvid}}'
data_hint = 'put CamVid there, or say where it is: CAMVID_ROOT=DIR'
crop_size = (192, 192)
# In the order of classes.txt.
classes = [
    *('sky', 'building', 'pole', 'road', 'pavement', 'tree', 'signsymbol'),
    *('fence', 'car', 'pedestrian', 'bicyclist'),
]
load = dict(type='LoadAnnotations', reduce_zero_label=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    load,
    dict(type='RandomResize', scale=(480, 360), ratio_range=(0.6, 1.2), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    # For `train_dataloader.dataset.pipeline.5.prob=1.0`: what colours tell (docs/results.md).
    dict(type='RandomApply', transforms=[dict(type='PhotoMetricDistortion')], prob=0.0),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(480, 360), keep_ratio=True),
    load,
    dict(type='PackSegInputs'),
]
dataset = dict(
    data_root=data_root, metainfo=dict(_delete_=True, classes=classes), img_suffix='.jpg', reduce_zero_label=True
)
train_dataloader = dict(batch_size=8, dataset=dict(pipeline=train_pipeline, **dataset))
auto_scale_lr = dict(base_batch_size=8)  # the images in a batch that the rate is for
val_dataloader = dict(batch_size=4, dataset=dict(pipeline=test_pipeline, **dataset))
test_dataloader = val_dataloader

model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(drop_path_rate=0.0),
    decode_head=dict(num_classes=11),
    auxiliary_head=dict(num_classes=11),
)
max_iters = 1500
train_cfg = dict(max_iters=max_iters, val_interval=300)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=100, end=max_iters),
]
randomness = dict(seed=0)
