# Parameters, gradients and optimizer states are sharded across processes (FSDP), and gathered block by block.
_base_ = 'maskrcnn_cvtw24_fpn_coco.py'

runner_type = 'FlexibleRunner'
strategy = dict(
    type='FSDPStrategy',
    state_dict_cfg='full',
    model_wrapper=dict(type='MMFullyShardedDataParallel', auto_wrap_policy='wrap_cvt_blocks'),
)
