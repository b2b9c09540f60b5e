# MMDetection's 1x schedule and runtime (12 epochs, the rate divided by 10 after 8 and 11, 500 warm-up steps), with
# exact resume and NaN/Inf checks (docs/reliability.md). cuDNN's attention plans anew for every image size: it is off.
# For products in TF32, --cfg-options default_hooks.backends.float32_matmul_precision=high
_base_ = ['mmdet::_base_/schedules/schedule_1x.py', 'mmdet::_base_/default_runtime.py']
train_cfg = dict(type='pvt_mm.EpochBasedTrainLoop', max_broken_images=10)
default_hooks = dict(
    checkpoint=dict(type='pvt_mm.CheckpointHook'),
    finite=dict(type='pvt_mm.FiniteHook'),
    backends=dict(type='pvt_mm.BackendsHook', cudnn_attention=False),
)
