"""From the model's options to the network that they describe."""

from __future__ import annotations

from jaxdnn.errors import InputError
from jaxdnn.layers import BlockOptions
from jaxdnn.models import Model, make_convnet, make_mlp
from jaxdnn.options import ModelOptions


def make_model(
    options: ModelOptions,
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    norm_momentum: float | None = None,
) -> Model:
    """Make the network that the options describe.

    Args:
      options: its architecture.
      input_shape: (height, width, channel).
      num_classes: of the task.
      norm_momentum: instead of the options' own.

    Raises:
      InputError: one sigmoid unit for more than two classes.
    """
    if options.head == "sigmoid" and num_classes != 2:
        raise InputError(
            f"--head sigmoid tells two classes apart, the data has {num_classes}; "
            "name the positive ones with --positive, or use --head softmax"
        )
    unit = BlockOptions(
        activation=options.make_activation(),
        kernel_init=options.make_initializer(),
        bias_init=options.bias_init,
        norm=options.norm,
        norm_momentum=options.norm_momentum if norm_momentum is None else norm_momentum,
        dropout=options.dropout,
    )
    num_outputs = 1 if options.head == "sigmoid" else num_classes
    if options.model == "convnet":
        return make_convnet(
            input_shape,
            num_outputs,
            widths=options.widths,
            blocks=options.blocks,
            stem=options.stem,
            unit=unit,
        )
    return make_mlp(input_shape, num_outputs, widths=options.widths, unit=unit)
