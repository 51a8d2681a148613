# Attention in windows of the pre-training grid where feature maps are large: 96 tokens at stride 4 and 48 at stride 8;
# global at stride 16. Half the time of exact attention at 800x1344, with the same weights.
_base_ = 'maskrcnn_cvt13_fpn_coco.py'

model = dict(backbone=dict(window_size=['pretrain', 'pretrain', None]))
