_base_ = [
    '_base_/models/cascademaskrcnn_cvt_fpn.py',
    '_base_/datasets/coco_instance_ms.py',
    '_base_/schedules/adamw_3x.py',
    '_base_/runtime/mmdet_runtime.py',
]
