# A small ResNet: three stages of two basic blocks, with the same channels and strides as the small CvT.
backbone = dict(
    type='ResNet',
    depth=18,
    stem_channels=32,
    base_channels=32,
    num_stages=3,
    strides=(1, 2, 2),
    dilations=(1, 1, 1),
    out_indices=(0, 1, 2),
    norm_eval=False,
)
