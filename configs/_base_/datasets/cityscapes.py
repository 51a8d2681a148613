# Cityscapes in its usual layout in $CITYSCAPES_ROOT, with labels converted to its 19 training classes.
_base_ = 'ade20k.py'

dataset_type = 'CityscapesDataset'
data_root = '{{$CITYSCAPES_ROOT:data/cityscapes}}'
data_hint = 'put Cityscapes there, or say where it is: CITYSCAPES_ROOT=DIR'
crop_size = (512, 1024)

train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
train_pipeline[1] = test_pipeline[2] = dict(type='LoadAnnotations')
train_pipeline[2].scale = test_pipeline[1].scale = (2048, 1024)
train_pipeline[3].crop_size = crop_size
train_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path='leftImg8bit/train', seg_map_path='gtFine/train'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path='leftImg8bit/val', seg_map_path='gtFine/val'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
