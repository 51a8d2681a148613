_base_ = [
    '_base_/models/mask2former_cvt.py',
    '_base_/datasets/ade20k.py',
    '_base_/schedules/adamw_160k.py',
    '_base_/runtime/mmseg_runtime.py',
]

optim_wrapper = dict(
    constructor='LayerDecayOptimWrapperConstructor',  # no weight decay on the backbone's norms and cls token
    optimizer=dict(lr=1e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=0.01, norm_type=2),
    paramwise_cfg=dict(
        custom_keys=dict(
            backbone=dict(lr_mult=0.1),
            query_embed=dict(decay_mult=0.0),
            query_feat=dict(decay_mult=0.0),
            level_embed=dict(decay_mult=0.0),
        )
    ),
)
auto_scale_lr = dict(base_batch_size=16)
