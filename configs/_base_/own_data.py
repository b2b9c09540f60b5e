# What the recipes of configs/own_data share, as variables: a warm-up of 50 steps and a cosine to 1/100 of the rate, and
# the average of the weights (EMA) over about the last tenth of the steps so far, which is evaluated and saved.
ema = dict(type='EMAHook', ema_type='MomentumAnnealingEMA', gamma=10, strict_load=False)
cosine = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.01, by_epoch=True, begin=0, end=24, convert_to_iter_based=True),
]
epochs = dict(type='pvt_mm.EpochBasedTrainLoop', max_epochs=24, val_interval=1, max_broken_images=10)
