# 80k iterations of AdamW; the learning rate decays to 0 with power 0.9 (section 5.3).
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-4, weight_decay=1e-4))
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0, begin=0, end=80000, by_epoch=False)]
train_cfg = dict(type='pvt_mm.IterBasedTrainLoop', max_iters=80000, val_interval=8000, max_broken_images=10)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=False, base_batch_size=16)
