# 300 epochs of AdamW (section 5.1) with a learning rate of 1e-3 for a batch of 1024: 5 epochs of warm-up from 1e-6, and
# a cosine to 1e-5, as in the authors' release (whose cosine starts at the first epoch: 0.07% lower at the fifth).
# Only the class token has no weight decay.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(custom_keys={'cls_token.token': dict(decay_mult=0.0)}),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=5, end=300, convert_to_iter_based=True),
]
train_cfg = dict(type='pvt_mm.EpochBasedTrainLoop', max_epochs=300, val_interval=1, max_broken_images=10)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=False, base_batch_size=1024)
