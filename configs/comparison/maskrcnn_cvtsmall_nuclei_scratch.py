# The small CvT with a stem and positions by convolution, as docs/training.md advises it from scratch.
_base_ = 'maskrcnn_cvtsmall_nuclei.py'

model = dict(backbone=dict(arch=dict(stem_channels=16, position='conv')))
