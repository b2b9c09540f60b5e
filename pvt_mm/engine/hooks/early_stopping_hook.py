"""Early stopping that a resumed run continues."""

from typing import Any

from mmengine.hooks import EarlyStoppingHook as MMEngineEarlyStoppingHook
from mmengine.runner import Runner

from pvt_mm.registry import HOOKS


@HOOKS.register_module()
class EarlyStoppingHook(MMEngineEarlyStoppingHook):
    """MMEngine's hook, with its arguments, whose count of evaluations without progress is in the checkpoints.

    MMEngine's begins to count anew when a run resumes, so that the run ends later than an uninterrupted one.
    """

    def before_train(self, runner: Runner) -> None:
        """Continues to count where the checkpoint's run was."""
        count = runner.message_hub.runtime_info.get('early_stopping')
        if runner._resume and count is not None:
            self.wait_count, self.best_score = count

    def after_val_epoch(self, runner: Runner, metrics: dict[str, Any] | None = None) -> None:
        """Stops the training if it is time to."""
        super().after_val_epoch(runner, metrics or {})
        runner.message_hub.update_info('early_stopping', [self.wait_count, self.best_score])
