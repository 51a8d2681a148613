# The small CvT as docs/training.md advises it from scratch: with a stem, positions by convolution, and a higher rate.
_base_ = 'maskrcnn_cvtsmall_nuclei.py'

model = dict(backbone=dict(arch=dict(stem_channels=16, position='conv')))
optim_wrapper = dict(optimizer=dict(lr=1.2e-3))
auto_scale_lr = dict(base_batch_size=4)  # the images in a batch that the rate is for
