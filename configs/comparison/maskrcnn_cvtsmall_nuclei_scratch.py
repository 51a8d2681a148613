# The small CvT with what docs/training.md advises from scratch: a stem, positions by convolution, a higher rate, and
# gradients that are clipped.
_base_ = 'maskrcnn_cvtsmall_nuclei.py'

model = dict(backbone=dict(arch=dict(stem_channels=16, position='conv')))
optim_wrapper = dict(optimizer=dict(lr=2.4e-3), clip_grad=dict(max_norm=1.0))
auto_scale_lr = dict(base_batch_size=4)  # the images in a batch that the rate is for
