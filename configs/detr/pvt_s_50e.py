# DETR with PVT-Small, 50 epochs: detection without convolutions (section 5.4). Paper: AP 34.7 (Table 6), 8 V100:
#   tools/dist_train.sh configs/detr/pvt_s_50e.py 8
_base_ = './r50_50e.py'
model = dict(
    type='pvt_mm.DETR',  # takes checkpoints of MMDetection 2, such as the authors'
    data_preprocessor=dict(pad_size_divisor=32),  # PVT drops incomplete patches
    backbone=dict(
        _delete_=True,
        type='pvt_mm.PVT',
        arch='small',
        out_indices=(3,),
        init_cfg=dict(
            type='Pretrained', checkpoint='https://github.com/whai362/PVT/releases/download/v2/pvt_small.pth'
        ),
    ),
    neck=dict(in_channels=[512]),
)
