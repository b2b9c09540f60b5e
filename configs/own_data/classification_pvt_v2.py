# Classes of your own images, in a folder each: PVTv2-B2 from the authors' weights on ImageNet (82.0% top-1 there).
#   tools/train.py configs/own_data/classification_pvt_v2.py --data FOLDER
# The recipe is classification.py's, but neither biases nor norms have weight decay.
_base_ = ['./classification.py', '../_base_/pvt_v2_b2.py']
model = dict(backbone={**_base_.pvt, 'out_type': 'avg_featmap'})
optim_wrapper = dict(paramwise_cfg=dict(_delete_=True, flat_decay_mult=0.0))
