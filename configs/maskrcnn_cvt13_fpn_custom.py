# Fine-tune on data of your own in COCO's format. Change the lines up to "below", and nothing else has to be.
_base_ = 'maskrcnn_cvt13_fpn_coco.py'

data_root = '{{$CUSTOM_ROOT:data/custom}}'
train_annotations, train_images = 'annotations/train.json', 'train/'
val_annotations, val_images = 'annotations/val.json', 'val/'
classes = ('object',)  # as the annotation file has them, each with its comma

# Below follows what these decide.
data_hint = 'set data_root in the config, or CUSTOM_ROOT=DIR'
dataset = dict(data_root=data_root, metainfo=dict(classes=classes))
train_dataloader = dict(
    dataset=dict(
        ann_file=train_annotations,
        data_prefix=dict(img=train_images),
        filter_cfg=dict(min_size=1),  # COCO's 32 would leave out small images without a word
        **dataset,
    )
)
val_dataloader = dict(dataset=dict(ann_file=val_annotations, data_prefix=dict(img=val_images), **dataset))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=f'{data_root}/{val_annotations}')
test_evaluator = val_evaluator
model = dict(
    roi_head=dict(bbox_head=dict(num_classes=len(classes)), mask_head=dict(num_classes=len(classes))),
)
