"""Losses from logits, in their stable form, and the probabilities that belong to them.

A network ends in k softmax units, or for two classes in one sigmoid unit. The shape of the logits
says which: (batch, k) or (batch, 1).

    >>> import jax.numpy as jnp
    >>> from jaxdnn.losses import predictions, probabilities
    >>> logits = jnp.array([[2.0, 2.0], [0.0, 3.0]])
    >>> predictions(logits).tolist(), float(probabilities(logits)[0, 0])
    ([0, 1], 0.5)
"""

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float, Int


def cross_entropy(
    logits: Float[Array, "batch output"], labels: Int[Array, " batch"]
) -> Float[Array, " batch"]:
    """Return -log p(label) of every example, in nats.

    Args:
      logits: (batch, k) for a softmax over k >= 2 classes, or (batch, 1) for one sigmoid unit.
      labels: class indices in [0, k); with one sigmoid unit 0 or 1.
    """
    if logits.shape[-1] == 1:
        return optax.sigmoid_binary_cross_entropy(logits[:, 0], labels.astype(logits.dtype))
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def soft_cross_entropy(
    logits: Float[Array, "batch output"], targets: Float[Array, "batch class"]
) -> Float[Array, " batch"]:
    """Return -sum over the classes of target * log p(class), of every example, in nats.

    Args:
      logits: as of `cross_entropy`.
      targets: what the probability of each class should be, or that times a weight; 0 or more.
    """
    if logits.shape[-1] == 1:
        log_p = jax.nn.log_sigmoid(jnp.concatenate([-logits, logits], axis=-1))
    else:
        log_p = jax.nn.log_softmax(logits)
    return -jnp.sum(targets * log_p, axis=-1)


def smooth(
    labels: Int[Array, " batch"], num_classes: int, share: float
) -> Float[Array, "batch class"]:
    """Return the target probabilities of labels, of which a share in [0, 1) is spread alike.

    Rethinking the Inception architecture for computer vision (Szegedy, Vanhoucke, Ioffe, Shlens and
    Wojna, 2016).
    """
    return (1 - share) * jax.nn.one_hot(labels, num_classes) + share / num_classes


def probabilities(logits: Float[Array, "batch output"]) -> Float[Array, "batch class"]:
    """Return the probability of every class: k >= 2 columns that sum to 1."""
    if logits.shape[-1] == 1:
        positive = jax.nn.sigmoid(logits)
        return jnp.concatenate([1 - positive, positive], axis=-1)
    return jax.nn.softmax(logits)


def predictions(logits: Float[Array, "batch output"]) -> Int[Array, " batch"]:
    """Return the most probable class of every example."""
    if logits.shape[-1] == 1:
        return (logits[:, 0] > 0).astype(jnp.int32)
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
