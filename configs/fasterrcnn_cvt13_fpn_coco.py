_base_ = [
    '_base_/models/fasterrcnn_cvt_fpn.py',
    '_base_/datasets/coco_detection.py',
    '_base_/schedules/adamw_1x.py',
    '_base_/runtime/mmdet_runtime.py',
]
