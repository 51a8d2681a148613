# Fine-tune on your own label maps. Edit only the settings at the top.
_base_ = 'upernet_cvt13_ade20k.py'  # without a GPU: 'upernet_cvttiny_shapes.py', which trains from scratch

data_root = '{{$CUSTOM_ROOT:data/custom}}'
train_images, train_labels = 'images/training', 'annotations/training'
val_images, val_labels = 'images/validation', 'annotations/validation'
test_images, test_labels = val_images, val_labels  # or a test split of your own
image_suffix, label_suffix = '.jpg', '.png'
classes = ('background', 'object')  # in the order of the labels 0, 1, …
reduce_zero_label = False  # True: label 0 is "unlabelled", and classes starts with label 1
scale = (2048, 512)  # longer and shorter side that images are resized to, at most, in pixels
crop_size = (512, 512)  # height and width of what it trains on
max_iters = 20000

# Derived from the settings above; no need to edit. 255 is always "unlabelled".
data_hint = 'set data_root in the config, or CUSTOM_ROOT=DIR'
load = dict(type='LoadAnnotations', reduce_zero_label=reduce_zero_label)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    load,
    dict(type='RandomResize', scale=scale, ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    load,
    dict(type='PackSegInputs'),
]
dataset = dict(
    _delete_=True,
    type='BaseSegDataset',
    data_root=data_root,
    metainfo=dict(classes=classes),
    img_suffix=image_suffix,
    seg_map_suffix=label_suffix,
    reduce_zero_label=reduce_zero_label,
)
train_dataloader = dict(
    dataset=dict(data_prefix=dict(img_path=train_images, seg_map_path=train_labels), pipeline=train_pipeline, **dataset)
)
val_dataloader = dict(
    batch_size=1,  # images may differ in size
    dataset=dict(data_prefix=dict(img_path=val_images, seg_map_path=val_labels), pipeline=test_pipeline, **dataset),
)
test_dataloader = dict(
    batch_size=1,
    dataset=dict(data_prefix=dict(img_path=test_images, seg_map_path=test_labels), pipeline=test_pipeline, **dataset),
)
model = dict(
    data_preprocessor=dict(size=crop_size),
    decode_head=dict(num_classes=len(classes)),
    auxiliary_head=dict(num_classes=len(classes)),
)
# Warm-up in the first tenth; evaluated and saved ten times.
tenth = max(1, max_iters // 10)
warm_up = min(1500, tenth)
train_cfg = dict(max_iters=max_iters, val_interval=tenth)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=warm_up),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=warm_up, end=max_iters),
]
default_hooks = dict(checkpoint=dict(interval=tenth))
