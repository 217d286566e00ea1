"""Metrics as TensorBoard scalars, named train/loss, valid/perplexity and so on."""

from megamesh.training.trainer import Hook, Metrics, Trainer


class TensorBoardHook(Hook):
    """Writes event files; a resumed run hides what an interrupted one wrote beyond its checkpoint."""

    def __init__(self, folder: str):
        self.folder = folder

    def on_start(self, trainer: Trainer) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and most runs have no folder for it

        self.writer = SummaryWriter(self.folder, purge_step=trainer.state.step + 1)

    def on_metrics(self, metrics: Metrics) -> None:
        for name, value in metrics.values.items():
            self.writer.add_scalar(f"{metrics.kind}/{name}", value, metrics.step)
        self.writer.flush()

    def on_end(self, trainer: Trainer) -> None:
        self.writer.close()
