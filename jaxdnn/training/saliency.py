"""Saliency: which pixels speak for the class that a network says, by integrated gradients.

    a = (x - x0) * mean over t in [0, 1] of the gradient of the score at x0 + t (x - x0)

x0 is the mean of the training images, which normalisation makes 0, and the score of a class is its
logit less the mean of the others'. The attributions of all pixels add up to the score of x less
that of x0 (completeness): what the network says is shared out among the pixels, nothing lost.

References:
  Axiomatic attribution for deep networks (Sundararajan, Taly and Yan, 2017).
"""

# Apart from run.py because it is an idea of its own, with a law of its own.

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int, UInt8

from jaxdnn.training.predictor import Network

NUM_STEPS = 32
_STEPS_AT_ONCE = 8  # A backward pass of so many photographs fits any memory.
SECONDS = 12.0
"""After the first, which has to be compiled for, no image is begun once so many have gone by: it
stays a small part of a run."""


def class_scores(logits: Float[Array, "batch output"]) -> Float[Array, "batch class"]:
    """Return the logit of every class less the mean of the others'; a sigmoid unit is class 1's."""
    if logits.shape[-1] == 1:
        return jnp.concatenate([-logits, logits], axis=-1)
    others = logits.shape[-1] - 1
    return (logits - logits.mean(axis=-1, keepdims=True)) * ((others + 1) / others)


def integrated_gradients(
    score: Callable[[Array], Array], image: Float[Array, "height width channel"]
) -> Float[Array, "height width channel"]:
    """Return the share of every value in score(image) - score(0).

    Args:
      score: images (batch, height, width, channel) -> (batch,), each by itself.
      image: what is explained; 0 is what it is compared with.
    """
    middles = (jnp.arange(NUM_STEPS) + 0.5) / NUM_STEPS
    gradient = jax.grad(lambda images: score(images).sum())

    def add(total: Array, part: Array) -> tuple[Array, None]:
        return total + gradient(part[:, None, None, None] * image).sum(0), None

    parts = middles.reshape(-1, _STEPS_AT_ONCE)
    total, _ = lax.scan(add, jnp.zeros_like(image), parts)
    return image * total / NUM_STEPS


def explain(
    network: Network,
    variables: Any,
    images: UInt8[np.ndarray, "num height width channel"],
    classes: Int[np.ndarray, " num"],
) -> Float[np.ndarray, "explained height width"]:
    """Return the attribution of every pixel, of the first images, as many as SECONDS allow.

    Args:
      network: from pixels to logits.
      variables: its weights.
      images: what to explain.
      classes: for each image, the class for which its pixels speak.
    """

    @jax.jit
    def of_one(variables: Any, image: Array, label: Array) -> Array:
        def score(normalised: Array) -> Array:
            return class_scores(network.logits(variables, normalised))[:, label]

        normalised = network.normalise(image[None])[0]
        return integrated_gradients(score, normalised).sum(-1)

    found, started = [], math.inf
    for image, label in zip(images, classes, strict=True):
        if time.monotonic() - started > SECONDS:
            break
        found.append(np.asarray(of_one(variables, jnp.asarray(image), jnp.asarray(label))))
        started = min(started, time.monotonic())
    return np.stack(found) if found else np.zeros((0, *images.shape[1:3]), np.float32)


def most_confident(
    scores: Float[np.ndarray, "example class"], among: np.ndarray
) -> Int[np.ndarray, " place"]:
    """Return the places where `among` is true, the most confident prediction first."""
    places = np.flatnonzero(among)
    return places[np.argsort(-scores.max(axis=1)[places], kind="stable")]


def by_turns(places: Int[np.ndarray, " place"], groups: np.ndarray) -> Int[np.ndarray, " place"]:
    """Return the places with the groups taking turns, each in its own order.

    Args:
      places: into `groups`.
      groups: of each example, a whole number.
    """
    of_place = groups[places]
    turn = np.zeros(len(places), int)
    for group in np.unique(of_place):
        turn[of_place == group] = np.arange(np.sum(of_place == group))
    return places[np.lexsort((of_place, turn))]
