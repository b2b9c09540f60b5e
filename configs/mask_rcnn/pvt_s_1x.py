# Mask R-CNN with PVT-Small, 1x schedule (section 5.2). Paper: box AP 40.4, mask AP 37.8 (Table 4), 8 V100 GPUs, 2
# images each:
#   tools/dist_train.sh configs/mask_rcnn/pvt_s_1x.py 8
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '../_base_/detection_1x.py',
    '../_base_/mask_rcnn_tta.py',
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
# NOTE: the paper's learning rate; the authors' release has 2e-4.
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=1e-4))
