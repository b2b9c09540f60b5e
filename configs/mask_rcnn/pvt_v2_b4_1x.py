# Mask R-CNN with PVTv2-B4, 1x schedule. PVT v2 paper: box AP 47.5, mask AP 42.7 (Table 3), 8 V100 GPUs, 1 image each:
#   tools/dist_train.sh configs/mask_rcnn/pvt_v2_b4_1x.py 8
_base_ = './pvt_v2_b2_1x.py'
weights = 'https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b4.pth'
model = dict(backbone=dict(arch='b4', init_cfg=dict(checkpoint=weights)))
optim_wrapper = dict(optimizer=dict(lr=2e-4 / 1.4))
train_dataloader = dict(batch_size=1)
auto_scale_lr = dict(base_batch_size=8)
