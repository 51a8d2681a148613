# Example of fine-tuning on your own data, with a small model: cell nuclei of the Data Science Bowl 2018, one class,
# up to 101 nuclei per image, half of them below 123 pixels in area. docs/finetuning.md explains each setting.
_base_ = 'maskrcnn_cvttiny_fpn_shapes.py'

data_root = '{{$NUCLEI_ROOT:data/nuclei}}'
data_hint = 'put the nuclei there, or say where they are: NUCLEI_ROOT=DIR'
classes = ('nucleus',)
scale = (256, 256)  # longer and shorter side in pixels

# Data
dataset = dict(data_root=data_root, metainfo=dict(_delete_=True, classes=classes))
train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
test_pipeline[1] = dict(type='Resize', scale=scale, keep_ratio=True)
train_pipeline.insert(2, test_pipeline[1])
train_dataloader = dict(
    batch_size=4,
    dataset=dict(ann_file='instances_train.json', data_prefix=dict(img='train/'), pipeline=train_pipeline, **dataset),
)
val_dataloader = dict(
    batch_size=1,  # norms of the heads see the padding of a batch of several sizes
    dataset=dict(ann_file='instances_val.json', data_prefix=dict(img='val/'), pipeline=test_pipeline, **dataset),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=f'{data_root}/instances_val.json', proposal_nums=(1, 10, 100))
test_evaluator = val_evaluator
auto_scale_lr = dict(base_batch_size=4)  # the images in a batch that the rate is for

# Many tiny objects
proposals = dict(nms_pre=400, max_per_img=250)
model = dict(
    rpn_head=dict(anchor_generator=dict(scales=[2, 4])),
    roi_head=dict(bbox_head=dict(num_classes=len(classes)), mask_head=dict(num_classes=len(classes))),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)), rpn_proposal=proposals, rcnn=dict(sampler=dict(num=96, pos_fraction=0.4))
    ),
    test_cfg=dict(rpn=proposals, rcnn=dict(max_per_img=150)),
)

# Short schedule
max_epochs = 8
train_cfg = dict(max_epochs=max_epochs, val_interval=2)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=max_epochs, convert_to_iter_based=True),
]
