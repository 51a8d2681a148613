# Cell nuclei, from scratch: the demo's Mask R-CNN with smaller anchors and room for more of them. 256x256 pixels, one
# class, up to 101 nuclei an image. $NUCLEI_ROOT has instances_{train,val}.json and the folders train and val.
_base_ = '../../maskrcnn_cvttiny_fpn_shapes.py'

data_root = '{{$NUCLEI_ROOT:data/nuclei}}'
data_hint = 'put the nuclei there, or say where they are: NUCLEI_ROOT=DIR'
dataset = dict(data_root=data_root, metainfo=dict(_delete_=True, classes=('nucleus',)))
test_pipeline = _base_.test_pipeline
test_pipeline[1] = dict(type='Resize', scale=(256, 256), keep_ratio=True)
train_dataloader = dict(
    batch_size=4, dataset=dict(ann_file='instances_train.json', data_prefix=dict(img='train/'), **dataset)
)
val_dataloader = dict(
    dataset=dict(ann_file='instances_val.json', data_prefix=dict(img='val/'), pipeline=test_pipeline, **dataset)
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=f'{data_root}/instances_val.json', proposal_nums=(1, 10, 100))
test_evaluator = val_evaluator

proposals = dict(nms_pre=400, max_per_img=250)
model = dict(
    backbone=dict(norm_eval=False, drop_path_rate=0.0, init_cfg=None),
    rpn_head=dict(anchor_generator=dict(scales=[2, 4])),
    roi_head=dict(bbox_head=dict(num_classes=1), mask_head=dict(num_classes=1)),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)), rpn_proposal=proposals, rcnn=dict(sampler=dict(num=96, pos_fraction=0.4))
    ),
    test_cfg=dict(rpn=proposals, rcnn=dict(max_per_img=150)),
)

max_epochs = 16
train_cfg = dict(max_epochs=max_epochs, val_interval=4)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=max_epochs, convert_to_iter_based=True),
]
randomness = dict(seed=0)
