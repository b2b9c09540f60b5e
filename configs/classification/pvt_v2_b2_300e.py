# PVTv2-B2 on ImageNet, 300 epochs. PVT v2 paper: top-1 error 18.0 % (Table 2), 8 V100 GPUs, 128 images each:
#   tools/dist_train.sh configs/classification/pvt_v2_b2_300e.py 8
# As pvt_s_300e.py, but neither biases nor norms have weight decay.
_base_ = './pvt_s_300e.py'
model = dict(backbone=dict(type='pvt_mm.PVTv2', arch='b2', out_type='avg_featmap'))
optim_wrapper = dict(paramwise_cfg=dict(_delete_=True, flat_decay_mult=0.0))
