_base_ = 'upernet_cvt13_ade20k.py'

crop_size = (640, 640)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        arch='cvt-w24',
        drop_path_rate=0.3,
        with_cp=True,  # 277M parameters: recompute activations so that two crops fit into memory
        init_cfg=dict(checkpoint='cvt-w24-384x384-in22k'),
    ),
    decode_head=dict(in_channels=[192, 768, 1024]),
    auxiliary_head=dict(in_channels=1024),
)

train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
train_pipeline[2].scale = test_pipeline[1].scale = (2560, 640)
train_pipeline[3].crop_size = crop_size
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
