# Faster R-CNN (Ren et al., arXiv 1506.01497): Mask R-CNN without its mask head.
_base_ = 'maskrcnn_cvt_fpn.py'

model = dict(
    type='FasterRCNN',
    data_preprocessor=dict(pad_mask=False),
    roi_head=dict(mask_roi_extractor=None, mask_head=None),
)
