# Fine-tune on your own data in COCO format. Edit only the settings at the top.
_base_ = 'maskrcnn_cvt13_fpn_coco.py'

data_root = '{{$CUSTOM_ROOT:data/custom}}'
train_annotations, train_images = 'annotations/train.json', 'train/'
val_annotations, val_images = 'annotations/val.json', 'val/'
classes = ('object',)  # as in the annotation file; a single name needs its comma

# Derived from the settings above; no need to edit.
data_hint = 'set data_root in the config, or CUSTOM_ROOT=DIR'
dataset = dict(data_root=data_root, metainfo=dict(classes=classes))
train_dataloader = dict(
    dataset=dict(
        ann_file=train_annotations,
        data_prefix=dict(img=train_images),
        filter_cfg=dict(min_size=1),  # COCO's 32 would silently drop small images
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
