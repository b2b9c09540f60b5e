# Classes of your own images, in a folder each: PVT-Small from the authors' weights on ImageNet (79.8% top-1 there).
#   tools/train.py configs/own_data/classification.py --data FOLDER
# 24 epochs with random crops and flips. The average of the weights (EMA) is evaluated after each epoch; the best is
# kept, and training stops after 8 epochs without a better one. Smaller machines: --batch 8, --size 128.
_base_ = ['../classification/pvt_s_300e.py', '../_base_/own_data.py']
weights = 'https://github.com/whai362/PVT/releases/download/v2/pvt_small.pth'
model = dict(
    data_preprocessor=dict(rand_augment=None, erasing=None, mixup=None, cutmix=None),  # too strong for small data
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=weights)),
)
train_dataloader = dict(batch_size=32, num_workers=4, sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True))
val_dataloader = dict(batch_size=32, num_workers=4)
test_dataloader = val_dataloader
train_cfg = _base_.epochs
param_scheduler = _base_.cosine
optim_wrapper = dict(optimizer=dict(lr=1e-4))
auto_scale_lr = dict(base_batch_size=32)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=1))
stop = dict(type='pvt_mm.EarlyStoppingHook', monitor='accuracy/top1', patience=8, min_delta=0.1)
custom_hooks = [_base_.ema, stop]
