# The small Mask R-CNN of the demo without its mask head, for boxes: small enough to train on two CPU cores.
_base_ = 'maskrcnn_cvttiny_fpn_shapes.py'

model = dict(
    type='FasterRCNN',
    data_preprocessor=dict(pad_mask=False),
    roi_head=dict(mask_roi_extractor=None, mask_head=None),
)
load = dict(type='LoadAnnotations', with_bbox=True)
train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
train_pipeline[1] = test_pipeline[2] = load
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator
