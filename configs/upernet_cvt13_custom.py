# Fine-tune on your own label maps. Edit only the settings at the top.
_base_ = 'upernet_cvt13_ade20k.py'

data_root = '{{$CUSTOM_ROOT:data/custom}}'
train_images, train_labels = 'images/training', 'annotations/training'
val_images, val_labels = 'images/validation', 'annotations/validation'
image_suffix, label_suffix = '.jpg', '.png'
classes = ('background', 'object')  # in the order of the labels 0, 1, …
reduce_zero_label = False  # True: label 0 is "unlabelled", and classes starts with label 1

# Derived from the settings above; no need to edit. 255 is always "unlabelled".
data_hint = 'set data_root in the config, or CUSTOM_ROOT=DIR'
train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
train_pipeline[1] = test_pipeline[2] = dict(type='LoadAnnotations', reduce_zero_label=reduce_zero_label)
dataset = dict(
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
    dataset=dict(data_prefix=dict(img_path=val_images, seg_map_path=val_labels), pipeline=test_pipeline, **dataset)
)
test_dataloader = val_dataloader
model = dict(decode_head=dict(num_classes=len(classes)), auxiliary_head=dict(num_classes=len(classes)))
