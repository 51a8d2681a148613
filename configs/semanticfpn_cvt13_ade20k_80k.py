_base_ = [
    '_base_/models/semanticfpn_cvt.py',
    '_base_/datasets/ade20k.py',
    '_base_/schedules/adamw_80k.py',
    '_base_/runtime/mmseg_runtime.py',
]

optim_wrapper = dict(optimizer=dict(lr=1e-4, weight_decay=1e-4))
auto_scale_lr = dict(base_batch_size=16)
