# Label maps of the same scenes; label 0, the background, is a class.
_base_ = 'ade20k.py'

data_root = '{{$SHAPES_ROOT:data/shapes}}'
data_hint = 'make it: python tools/make_shapes.py --out data/shapes, or say where it is: SHAPES_ROOT=DIR'
metainfo = dict(
    classes=('background', 'ellipse', 'rectangle', 'triangle', 'star', 'ring'),
    palette=[[90, 90, 90], [60, 150, 255], [255, 160, 40], [70, 210, 110], [245, 80, 150], [170, 110, 255]],
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=False),
    dict(type='RandomFlip', prob=[0.3, 0.3], direction=['horizontal', 'vertical']),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=False),
    dict(type='PackSegInputs'),
]
shapes = dict(
    type='BaseSegDataset',
    data_root=data_root,
    metainfo=metainfo,
    img_suffix='.jpg',
    seg_map_suffix='.png',
    reduce_zero_label=False,
)
train_dataloader = dict(batch_size=16, num_workers=1, dataset=dict(pipeline=train_pipeline, **shapes))
val_dataloader = dict(batch_size=8, num_workers=1, dataset=dict(pipeline=test_pipeline, **shapes))
test_dataloader = val_dataloader
