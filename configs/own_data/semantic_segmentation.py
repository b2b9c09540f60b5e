# Label maps of your own: Semantic FPN with PVT-Small, from ImageNet's weights. (The authors' segmentor is on Google
# Drive: configs/semantic_fpn/README.md links it; download it with a browser, and add --weights PATH.)
#   tools/train.py configs/own_data/semantic_segmentation.py --data FOLDER
# 48 epochs with crops of 512 pixels at 0.5 to 2 times the size. The average of the weights (EMA) is evaluated after
# each epoch; the best is kept, and training stops after 16 epochs without a better one. Smaller: --batch 2, --size 256.
_base_ = ['../semantic_fpn/pvt_s_80k.py', '../_base_/own_data.py']
train_dataloader = dict(sampler=dict(type='DefaultSampler'))
train_cfg = dict(_delete_=True, **{**_base_.epochs, 'max_epochs': 48})
param_scheduler = [_base_.cosine[0], {**_base_.cosine[1], 'end': 48}]
log_processor = dict(by_epoch=True)
best = dict(by_epoch=True, interval=1, save_best='mIoU', max_keep_ckpts=1)
default_hooks = dict(checkpoint=best, logger=dict(log_metric_by_epoch=True))
custom_hooks = [_base_.ema, dict(type='pvt_mm.EarlyStoppingHook', monitor='mIoU', patience=16, min_delta=0.1)]
