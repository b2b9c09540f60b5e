# PVT-Small and its recipe as variables, for a config that inherits one of MMDetection's whole configs: model.backbone
# is `_base_.pvt`, and so on (configs/heads). AdamW as in section 5.2, exact resume and NaN/Inf checks as in
# detection_1x.py.
pvt = dict(
    _delete_=True,
    type='pvt_mm.PVT',
    arch='small',
    init_cfg=dict(type='Pretrained', checkpoint='https://github.com/whai362/PVT/releases/download/v2/pvt_small.pth'),
)
pvt_channels = dict(in_channels=[64, 128, 320, 512])
adamw = dict(_delete_=True, type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-4, weight_decay=1e-4))
loop = dict(type='pvt_mm.EpochBasedTrainLoop', max_broken_images=10)
hooks = dict(
    checkpoint=dict(type='pvt_mm.CheckpointHook'),
    finite=dict(type='pvt_mm.FiniteHook'),
    backends=dict(type='pvt_mm.BackendsHook', cudnn_attention=False),
)
