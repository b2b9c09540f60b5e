# RetinaNet with PVT-Small, 1x schedule (section 5.2). Paper: AP 40.4 (Table 3), 8 V100 GPUs, 2 images each:
#   tools/dist_train.sh configs/retinanet/pvt_s_1x.py 8
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '../_base_/detection_1x.py',
    'mmdet::retinanet/retinanet_tta.py',
]
model = dict(
    backbone=dict(
        _delete_=True,
        type='pvt_mm.PVT',
        arch='small',
        init_cfg=dict(
            type='Pretrained', checkpoint='https://github.com/whai362/PVT/releases/download/v2/pvt_small.pth'
        ),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=1e-4))
