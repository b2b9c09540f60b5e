# The 3x schedule, and images with a shorter side from 640 to 800 (section 5.2), as variables.
_base_ = './schedule_3x.py'
multi_scale, multi_scale_with_masks = (
    [
        dict(type='LoadImageFromFile'),
        load,
        dict(type='RandomResize', scale=[(1333, 640), (1333, 800)], keep_ratio=True),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PackDetInputs'),
    ]
    for load in (
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    )
)
