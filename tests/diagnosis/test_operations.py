"""The operation that is not finite is named with its line, through whatever JAX wraps it in."""

import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdnn.diagnosis import examine
from jaxdnn.diagnosis.operations import explain, not_finite, rows
from jaxdnn.diagnosis.origins import first_not_finite
from jaxdnn.diagnosis.source_lines import source_line

from . import zoo

WIDTH, BATCH, ZERO = 4, 6, 2
KERNEL = zoo.normal(0, WIDTH, WIDTH)
INPUTS = zoo.normal(1, BATCH, WIDTH).at[ZERO].set(0.0)


def logarithm_in_where(h):
    logarithm = jnp.log(jnp.abs(h))  # here
    return jnp.where(h == 0, 0.0, logarithm)


def zero_over_zero(h):
    return h / jnp.abs(h)  # here


def unit_length(h):
    return h * jnp.linalg.norm(h, axis=-1, keepdims=True)  # here


def safe_logarithm(h):
    return jnp.where(h == 0, 0.0, jnp.log(jnp.where(h == 0, 1.0, jnp.abs(h))))


def scanned(operation):
    return lambda h: jax.lax.scan(lambda carry, row: (carry, operation(row)), 0, h)[1]


def chosen(operation):
    return lambda h: jax.lax.cond(h.sum() < jnp.inf, operation, jnp.sin, h)


def with_own_jvp(operation):
    own = jax.custom_jvp(operation)
    own.defjvp(lambda primals, tangents: jax.jvp(operation, primals, tangents))
    return own


def marked(function):
    """The number of the line that ends in `# here`."""
    lines, first = inspect.getsourcelines(function)
    return next(first + i for i, line in enumerate(lines) if line.rstrip().endswith("# here"))


def found(operation, through=lambda operation: operation):
    """Where the objective of one layer and an operation first is not finite."""
    origin = searched(through(operation))
    assert origin is not None
    return origin


def searched(operation):
    return first_not_finite(lambda kernel, x: operation(x @ kernel).sum(), KERNEL, INPUTS)


@pytest.mark.parametrize(
    "through", [jax.jit, scanned, chosen, jax.checkpoint, jax.vmap, with_own_jvp]
)
@pytest.mark.parametrize(
    ("operation", "primitive", "in_value"),
    [
        (logarithm_in_where, "log", False),
        (zero_over_zero, "div", True),
        (unit_length, "sqrt", False),
    ],
)
def test_line_is_named_through_every_transformation(operation, primitive, in_value, through):
    origin = found(operation, through)
    line = source_line(origin.slope_of or origin.equations)
    assert line is not None
    assert (line.file, line.line) == (__file__, marked(operation))
    assert (origin.primitive, origin.in_value) == (primitive, in_value)


def test_rows_and_iteration_are_named():
    assert rows(found(zero_over_zero), BATCH) == (ZERO,)
    assert found(zero_over_zero, scanned).iterations == (ZERO,)


def test_sound_twin_and_partial_masks_are_no_finding():
    assert searched(safe_logarithm) is None
    # Infinity in a mask, with something left in every row.
    mask = jnp.arange(WIDTH) > 0
    assert searched(lambda h: jax.nn.softmax(jnp.where(mask, h, -jnp.inf)) ** 2) is None


def test_masked_row_is_the_softmaxs_and_not_the_masks():
    origin = found(lambda h: jax.nn.softmax(jnp.where(h != 0, h, -jnp.inf)) ** 2)
    assert rows(origin, BATCH) == (ZERO,)
    assert "masked" in explain(origin).fault


def test_infinity_that_reaches_the_loss_from_a_mask_is_said():
    def loss(kernel, x):
        open_to = jnp.where(jnp.arange(WIDTH) < 2, x @ kernel, -jnp.inf)
        return optax.softmax_cross_entropy_with_integer_labels(open_to, jnp.full(BATCH, 3)).mean()

    origin = first_not_finite(loss, KERNEL, INPUTS)
    assert origin is not None
    assert origin.constant
    assert "constant -inf" in explain(origin).fault


def test_first_of_two_is_named():
    """The second has NaN by itself, too."""
    origin = found(lambda h: zero_over_zero(h) + jnp.log(-jnp.abs(h)))
    assert origin.primitive == "div"


def test_what_is_left_out_is_not_named():
    """A part that is not finite and that nothing uses."""
    origin = found(lambda h: jnp.log(h * 0)[:0].sum() + jnp.sqrt(jnp.abs(h) - 1.0))
    assert origin.primitive == "sqrt"


def test_branch_that_where_does_not_take_is_not_named():
    """NaN stands at the same places of both, and the one that comes first is left out."""

    def operation(h):
        left_out = jnp.where(h == 0, jnp.sqrt(-1 - jnp.abs(h)), 1.0)
        return jnp.where(h == 0, zero_over_zero(h), left_out)

    assert found(operation).primitive == "div"


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        (lambda h: jnp.log(h * 0), "logarithm of 0"),
        (lambda h: jnp.exp(1e4 * jnp.abs(h)), "exp(88.7)"),
        (lambda h: (1e3 * h).astype(jnp.float16) ** 2, "float16 ends at 6.55e+04"),
        (lambda h: jnp.arccos(h + 2.0), "arccos ends at -1 and 1"),
        (lambda h: jnp.take(h, jnp.array([9]), axis=1), "index 9"),
        (lambda h: jnp.abs(h) ** 0.5, "power below 1"),
        (lambda h: h.std(1), "standard deviation"),
        (lambda h: jnp.arctan2(h, h), "no direction"),
        (lambda h: jnp.sqrt(h), "no square root"),
    ],
)
def test_values_are_told(operation, words):
    assert words in explain(found(lambda h: operation(h).astype(jnp.float32))).fault


def test_backward_pass_of_ones_own_is_the_line_of_its_call():
    @jax.custom_vjp
    def root(x):
        return jnp.sqrt(jnp.abs(x))

    root.defvjp(lambda x: (root(x), x), lambda x, grad: (grad / root(x),))
    origin = found(lambda h: root(h))
    assert origin.primitive == "custom_vjp_call"
    assert "divides 1 by 0" in explain(origin).fault


def network(operation):
    """Two layers with an operation between them."""
    params = [KERNEL, zoo.normal(2, WIDTH, WIDTH)]
    return (lambda params, x: operation(x @ params[0]) @ params[1], params)


def test_finding_names_line_rows_layer_and_remedy():
    exam = examine(network(logarithm_in_where), INPUTS, jnp.zeros((BATCH, WIDTH)))
    (finding,) = not_finite(exam)
    assert finding.layer == 0
    assert f"test_operations.py:{marked(logarithm_in_where)} " in finding.evidence
    assert f"in 1 of {BATCH} examples (row {ZERO})" in finding.evidence
    assert "jnp.where" in finding.evidence


def test_targets_that_are_not_finite_are_told_by_row():
    targets = jnp.zeros((BATCH, WIDTH)).at[3, 0].set(jnp.nan)
    (finding,) = not_finite(examine(network(jnp.tanh), INPUTS, targets))
    assert "targets hold NaN" in finding.evidence
    assert "(row 3)" in finding.evidence


def exam_of_growing_layers(scale):
    """Eight layers that each multiply by a million or so."""
    kernels = [1e6 * zoo.normal(i, WIDTH, WIDTH) for i in range(8)]

    def apply(params, x):
        for kernel in params:
            x = x @ kernel
        return x

    return examine((apply, kernels), scale * INPUTS, jnp.zeros((BATCH, WIDTH)))


def test_overflow_of_the_gradient_tells_the_growth_after_it():
    exam = exam_of_growing_layers(1e-35)
    (finding,) = not_finite(exam)
    deltas = [exam.measured.delta[layer.z] for layer in exam.graph.layers]
    assert np.isfinite(exam.measured.loss)
    assert finding.layer is not None
    assert not np.isfinite(deltas[finding.layer - 1])
    assert np.isfinite(deltas[finding.layer])
    assert "its gradient is beyond its format" in finding.evidence
    number = len(deltas) - 1 - finding.layer
    assert f"{number} layers after it multiply the gradient by" in finding.evidence


def test_overflow_of_a_layer_tells_the_growth_before_it():
    exam = exam_of_growing_layers(1.0)
    (finding,) = not_finite(exam)
    first = next(i for i, z in enumerate(exam.measured.signals) if not np.isfinite(z.rms))
    assert finding.layer == first
    assert "float32 ends at 3.4e+38" in finding.evidence
    assert f"{first} layers before it grow by" in finding.evidence


def test_the_values_are_those_of_the_operation():
    origin = found(zero_over_zero)
    h = INPUTS @ KERNEL
    chex.assert_trees_all_close(origin.operands, (np.asarray(h), np.abs(h)), rtol=1e-5)
    np.testing.assert_array_equal(origin.made, np.asarray(h) == 0)


def test_array_that_the_model_holds_is_told():
    held = jnp.full(WIDTH, jnp.nan)
    (finding,) = not_finite(examine(network(lambda h: h + held), INPUTS, jnp.zeros((BATCH, WIDTH))))
    assert "an array that the model holds" in finding.evidence


def test_loss_of_a_library_is_told_by_the_librarys_line():
    def apply(params, x):
        return jnp.where(jnp.arange(WIDTH) < 2, x @ params[0], -jnp.inf)

    (finding,) = not_finite(examine((apply, [KERNEL]), INPUTS, jnp.full(BATCH, 3)))
    assert "constant -inf" in finding.evidence
    exam = examine((lambda params, x: 1e30 * x @ params[0], [KERNEL]), INPUTS, INPUTS)
    (finding,) = not_finite(exam)
    assert finding.evidence.startswith("in the loss: ")
