"""The training recipes: named settings, each a point that the lecture makes.

`shallow` and `lecture` are the two training tables of the lecture's slides; `deep` and `conv` are
what they grow into with everything that the lecture teaches; `photo` is `conv` for small
photographs in colour. `pretrained` is the lecture's strongest advice, weights of another model.
"""

from jaxdnn.config import Config
from jaxdnn.options import (
    AugmentOptions,
    DataOptions,
    ModelOptions,
    OptimizerOptions,
    TrainOptions,
)

_AUGMENT = AugmentOptions(random_scale=0.15, random_crop=2, horizontal_flip=0.5, rotation=15.0)

DEEP = Config(
    data=DataOptions(balance="batches"),
    model=ModelOptions(widths=(512, 512, 512)),
    optimizer=OptimizerOptions(
        learning_rate=0.1, momentum=0.9, nesterov=True, schedule="cosine_decay", l2=1.0
    ),
    augment=_AUGMENT,
    train=TrainOptions(epochs=60, monitor="val/auc"),
)

LECTURE = Config(
    model=ModelOptions(widths=(512, 128), initializer="glorot_normal"),
    optimizer=OptimizerOptions(learning_rate=0.1, decay_rate=0.98),
    train=TrainOptions(batch_size=128, epochs=10),
)

SHALLOW = Config(
    model=ModelOptions(widths=(5, 3), initializer="glorot_normal", norm="none", head="sigmoid"),
    optimizer=OptimizerOptions(learning_rate=0.001, decay_rate=0.98, l2=1.0),
    train=TrainOptions(batch_size=64, epochs=10),
)

CONV = Config(
    data=DataOptions(balance="batches"),
    model=ModelOptions(model="convnet", widths=(32, 64, 128)),
    optimizer=OptimizerOptions(
        learning_rate=0.1, momentum=0.9, nesterov=True, schedule="cosine_decay", l2=3.0
    ),
    augment=_AUGMENT,
    train=TrainOptions(epochs=24, monitor="val/auc"),
)

PHOTO = Config(
    data=DataOptions(balance="batches"),
    model=ModelOptions(model="convnet", widths=(64, 128, 256), blocks=0),
    optimizer=OptimizerOptions(
        learning_rate=0.2, momentum=0.9, nesterov=True, schedule="cosine_decay", l2=10.0
    ),
    augment=AugmentOptions(random_crop=4, horizontal_flip=0.5, brightness=0.2, contrast=0.2),
    train=TrainOptions(
        epochs=16,
        monitor="val/auc",
        evaluate_every=2,
        label_smoothing=0.1,
        ema_decay=0.998,
        flip_test=True,
    ),
)

PRETRAINED = Config(
    data=DataOptions(balance="batches", channels=3, streaming=True, resampling="bicubic"),
    model=ModelOptions(model="efficientnet_lite0", widths=(), views=1),
    optimizer=OptimizerOptions(
        learning_rate=0.01, momentum=0.9, nesterov=True, schedule="cosine_decay", l2=1.0
    ),
    augment=AugmentOptions(random_scale=0.15, horizontal_flip=0.5, rotation=10.0),
    train=TrainOptions(batch_size=32, epochs=20, monitor="val/loss"),
)

RECIPES = {
    "deep": DEEP,
    "lecture": LECTURE,
    "shallow": SHALLOW,
    "conv": CONV,
    "photo": PHOTO,
    "pretrained": PRETRAINED,
}
