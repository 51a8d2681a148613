# Fine-tune on your own masks: COCO format. Edit only the settings at the top.
_base_ = 'maskrcnn_cvt13_fpn_coco.py'  # without a GPU: 'maskrcnn_cvttiny_fpn_shapes.py'

data_root = '{{$CUSTOM_ROOT:data/custom}}'
train_annotations, train_images = 'annotations/train.json', 'train/'
val_annotations, val_images = 'annotations/val.json', 'val/'
test_annotations, test_images = val_annotations, val_images  # or a test split of your own
classes = ('object',)  # as in the annotation file; a single name needs its comma
scale = (1333, 800)  # longer and shorter side that images are resized to, at most, in pixels
max_epochs = 12

# Derived from the settings above; no need to edit.
data_hint = 'set data_root in the config, or CUSTOM_ROOT=DIR'
heads = [name for name in ('bbox_head', 'mask_head') if _base_.model.roi_head.get(name)]
load = dict(type='LoadAnnotations', with_bbox=True, with_mask='mask_head' in heads)
resize = dict(type='Resize', scale=scale, keep_ratio=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    load,
    resize,
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    resize,
    load,
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
dataset = dict(_delete_=True, type='CocoDataset', data_root=data_root, metainfo=dict(classes=classes))
train_dataloader = dict(
    dataset=dict(
        ann_file=train_annotations,
        data_prefix=dict(img=train_images),
        filter_cfg=dict(filter_empty_gt=True, min_size=1),  # COCO's 32 would silently drop small images
        pipeline=train_pipeline,
        **dataset,
    )
)
test_dataset = dict(test_mode=True, pipeline=test_pipeline, **dataset)
val_dataloader = dict(
    batch_size=1, dataset=dict(ann_file=val_annotations, data_prefix=dict(img=val_images), **test_dataset)
)
test_dataloader = dict(
    batch_size=1, dataset=dict(ann_file=test_annotations, data_prefix=dict(img=test_images), **test_dataset)
)
val_evaluator = dict(ann_file=f'{data_root}/{val_annotations}')
test_evaluator = dict(ann_file=f'{data_root}/{test_annotations}')
model = dict(roi_head={name: dict(num_classes=len(classes)) for name in heads})
# Warm-up in the first epoch, however short; the rate drops tenfold after two thirds of the epochs, and near the end.
train_cfg = dict(max_epochs=max_epochs, val_interval=max(1, max_epochs // 12))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(
        type='MultiStepLR',
        by_epoch=True,
        begin=0,
        end=max_epochs,
        milestones=[max(1, max_epochs * 2 // 3), max(1, max_epochs * 11 // 12)],
        gamma=0.1,
    ),
]
