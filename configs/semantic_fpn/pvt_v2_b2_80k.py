# Semantic FPN with PVTv2-B2, 80k iterations. PVT v2 paper: mIoU 45.2 (Table 5), 4 V100 GPUs, 4 images each:
#   tools/dist_train.sh configs/semantic_fpn/pvt_v2_b2_80k.py 4
# The learning rate is the paper's, 1e-4 for 16 images. The authors' release trains on as many images in 40k iterations
# of 32, with 2e-4:
#   tools/dist_train.sh configs/semantic_fpn/pvt_v2_b2_80k.py 8 --cfg-options optim_wrapper.optimizer.lr=2e-4 \
#       train_cfg.max_iters=40000 param_scheduler.0.end=40000
_base_ = ['./pvt_s_80k.py', '../_base_/pvt_v2_b2.py']
model = dict(backbone=_base_.pvt)
