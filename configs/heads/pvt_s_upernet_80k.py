# UPerNet with PVT-Small, 80k iterations: MMSegmentation's heads with section 5.3's recipe. 4 GPUs, 4 images each:
#   tools/dist_train.sh configs/heads/pvt_s_upernet_80k.py 4
_base_ = '../semantic_fpn/pvt_s_80k.py'
shared = dict(num_classes=150, norm_cfg=dict(type='SyncBN', requires_grad=True), align_corners=False)
pyramid = dict(type='UPerHead', in_channels=[64, 128, 320, 512], in_index=[0, 1, 2, 3], channels=512, **shared)
stage_3 = dict(type='FCNHead', in_channels=320, in_index=2, channels=256, num_convs=1, concat_input=False, **shared)
auxiliary_loss = dict(type='CrossEntropyLoss', loss_weight=0.4)
model = dict(
    neck=None,
    decode_head=dict(_delete_=True, **pyramid),
    auxiliary_head=dict(loss_decode=auxiliary_loss, **stage_3),
)
