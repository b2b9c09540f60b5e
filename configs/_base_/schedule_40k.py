# The 80k schedule in half the iterations (section 5.4).
_base_ = './schedule_80k.py'
train_cfg = dict(max_iters=40000)
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0, begin=0, end=40000, by_epoch=False)]
