# Cascade Mask R-CNN (Cai and Vasconcelos, arXiv 1906.09756): three box heads, each trained on better boxes.
_base_ = 'maskrcnn_cvt_fpn.py'

mask_rcnn = _base_.model
stages = [(0.5, (0.1, 0.1, 0.2, 0.2)), (0.6, (0.05, 0.05, 0.1, 0.1)), (0.7, (0.033, 0.033, 0.067, 0.067))]

model = dict(
    type='CascadeRCNN',
    roi_head=dict(
        _delete_=True,
        type='CascadeRoIHead',
        num_stages=3,
        stage_loss_weights=[1, 0.5, 0.25],
        bbox_roi_extractor=mask_rcnn.roi_head.bbox_roi_extractor,
        bbox_head=[
            dict(
                type='Shared2FCBBoxHead',
                in_channels=256,
                fc_out_channels=1024,
                roi_feat_size=7,
                num_classes=80,
                bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0, 0.0, 0.0, 0.0], target_stds=list(stds)),
                reg_class_agnostic=True,
                loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
                loss_bbox=dict(type='SmoothL1Loss', beta=1.0, loss_weight=1.0),
            )
            for _, stds in stages
        ],
        mask_roi_extractor=mask_rcnn.roi_head.mask_roi_extractor,
        mask_head=mask_rcnn.roi_head.mask_head,
    ),
    train_cfg=dict(
        rcnn=[
            dict(
                assigner=dict(
                    type='MaxIoUAssigner',
                    pos_iou_thr=iou,
                    neg_iou_thr=iou,
                    min_pos_iou=iou,
                    match_low_quality=False,
                    ignore_iof_thr=-1,
                ),
                sampler=mask_rcnn.train_cfg.rcnn.sampler,
                mask_size=28,
                pos_weight=-1,
                debug=False,
            )
            for iou, _ in stages
        ]
    ),
)
