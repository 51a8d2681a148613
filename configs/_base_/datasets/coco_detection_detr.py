# COCO 2017 with DETR's augmentation: random resize, for half of the images after a random crop.
_base_ = 'coco_detection.py'

train_pipeline = _base_.train_pipeline
resize = dict(type='RandomChoiceResize', scales=[(1333, side) for side in range(480, 801, 32)], keep_ratio=True)
resize_for_crop = dict(type='RandomChoiceResize', scales=[(4200, side) for side in (400, 500, 600)], keep_ratio=True)
crop = dict(type='RandomCrop', crop_type='absolute_range', crop_size=(384, 600), allow_negative_crop=True)
train_pipeline[2] = dict(type='RandomChoice', transforms=[[resize], [resize_for_crop, crop, resize]])
train_dataloader = dict(dataset=dict(filter_cfg=dict(filter_empty_gt=False), pipeline=train_pipeline))
