# What MMSegmentation's default_runtime.py sets; `_base_ = 'mmseg::...'` does not resolve in every distribution of it.
default_scope = 'mmseg'
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='pvt_mm.CheckpointHook', by_epoch=False, interval=8000),
    finite=dict(type='pvt_mm.FiniteHook'),
    backends=dict(type='pvt_mm.BackendsHook', cudnn_attention=False),  # it plans anew for every size of a test image
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
visualizer = dict(type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
log_processor = dict(by_epoch=False)
log_level = 'INFO'
load_from = None
resume = False
