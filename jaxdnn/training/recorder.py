"""Where a run's numbers go while it runs: metrics.jsonl, TensorBoard and a progress bar."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from jaxdnn.progress import progress_bar, write_line
from jaxdnn.run_folder import RunFolder, append_metrics, keep_metrics_until, sync_file

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter


class Recorder:
    """Records metrics and shows progress. A context manager.

    Args:
      folder: where the numbers go; None, for all processes of a run but the first, records nothing.
      num_steps: where training ends at the latest.
      batch_size: number of images in a step.
      start: steps taken before; what was recorded of later ones is dropped.
      progress: show a bar on stderr.
    """

    def __init__(
        self,
        folder: RunFolder | None,
        *,
        num_steps: int,
        batch_size: int,
        start: int,
        progress: bool,
    ):
        self._folder = folder
        self._start = start
        self._batch_size = batch_size
        self._step = start
        self._notes: dict[str, str] = {}
        self._warned: set[str] = set()
        if folder is not None:
            keep_metrics_until(folder.metrics, start)
        self._bar = progress_bar(
            desc="compiling",
            total=num_steps * batch_size,
            initial=start * batch_size,
            unit=" images",
            disable=not progress,
        )

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if "_writer" in vars(self):
            self._writer.close()

    @functools.cached_property
    def _writer(self) -> SummaryWriter:
        # Only when there is something to write: it loads PyTorch where that is installed, which
        # takes longer than to reach the first step.
        from tensorboardX import SummaryWriter

        assert self._folder is not None
        return SummaryWriter(str(self._folder.tensorboard), purge_step=self._start + 1)

    def advance(self, step: int, loss: float, accuracy: float) -> None:
        """Move the bar to `step`."""
        self._bar.set_description("training")
        self._notes |= {"loss": f"{loss:.4f}", "accuracy": f"{accuracy:.3f}"}
        self._bar.set_postfix(self._notes, refresh=False)
        self._bar.update((step - self._step) * self._batch_size)
        self._step = step

    def record(self, metrics: dict[str, Any]) -> None:
        """Keep the metrics of an evaluation; `step` and `epoch` are among them."""
        self._notes["val"] = f"{metrics['val/balanced_accuracy']:.3f}"
        if self._folder is None:
            return
        append_metrics(self._folder.metrics, metrics)
        for name, value in metrics.items():
            if name != "step":
                self._writer.add_scalar(name, value, metrics["step"])

    def record_layers(self, metrics: dict[str, Any]) -> None:
        """Keep the statistics of the layers at a step; `step` and `epoch` are among them."""
        if self._folder is None:
            return
        from tensorboardX.proto import summary_pb2

        # Its classes are made when it is imported.
        summary = vars(summary_pb2)["Summary"]
        append_metrics(self._folder.metrics, metrics)
        values = [
            summary.Value(tag=name, simple_value=value)
            for name, value in metrics.items()
            if name not in ("step", "epoch")
        ]
        file_writer = self._writer.file_writer
        assert file_writer is not None
        # One event for all of them: as many events take as long as a step.
        file_writer.add_summary(summary(value=values), metrics["step"])

    def tell_skipped(self, num: int, in_a_row: int, last: int) -> None:
        """Say that steps were left out: the first time, and whenever their number has doubled."""
        if num:
            self._notes["skipped"] = str(num)
            self.warn(
                f"{num.bit_length()} bits of skipped steps",
                f"step {last}: the loss or a gradient was not finite, or the loss far beyond that "
                f"of guessing; its update was left out ({num:,} so far, {in_a_row} in a row)",
            )

    def sync(self) -> None:
        """Bring the metrics to the disk: no checkpoint may be newer than they are."""
        if self._folder is not None:
            sync_file(self._folder.metrics)

    def warn(self, kind: str, text: str) -> None:
        """Print a line above the bar, the first time for its kind."""
        if self._folder is not None and kind not in self._warned:
            self._warned.add(kind)
            write_line(f"warning: {text}")
