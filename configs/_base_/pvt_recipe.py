# What the configs of other heads share whatever their PVT is, as variables: AdamW as in section 5.2, exact resume and
# NaN/Inf checks as in detection_1x.py, and the channels of all archs but b0 and small_wide.
pvt_channels = dict(in_channels=[64, 128, 320, 512])
adamw = dict(_delete_=True, type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-4, weight_decay=1e-4))
loop = dict(type='pvt_mm.EpochBasedTrainLoop', max_broken_images=10)
hooks = dict(
    checkpoint=dict(type='pvt_mm.CheckpointHook'),
    finite=dict(type='pvt_mm.FiniteHook'),
    backends=dict(type='pvt_mm.BackendsHook', cudnn_attention=False),
)
