# A small Swin-T: three stages, with the same channels, depths and heads as the small CvT.
backbone = dict(
    type='SwinTransformer',
    embed_dims=32,
    depths=(1, 1, 2),
    num_heads=(1, 2, 4),
    strides=(4, 2, 2),
    window_size=7,
    out_indices=(0, 1, 2),
    drop_path_rate=0.0,
)
