"""One rule for sizes: what would not fit is refused before it is made, whatever program asks."""

import pytest

from jaxdnn.errors import InputError
from jaxdnn.memory import allowed_bytes, check_memory, memory_bytes

from .experiments.conftest import load_program


def test_a_quarter_of_the_memory_is_the_limit_however_large_the_number():
    assert allowed_bytes() == memory_bytes() / 4
    most = int(allowed_bytes()) // 4
    check_memory("numbers", (most,), "take fewer")
    for shape in ((most + 1,), (2, most), (10**30, 10**30), (10**400,)):
        with pytest.raises(InputError, match=r"numbers take .* GiB of memory; .*; take fewer"):
            check_memory("numbers", shape, "take fewer")
    check_memory("bytes", (most + 1,), "take fewer", itemsize=1)


@pytest.mark.parametrize(
    ("program", "args"),
    [
        ("deep_dog", ["--widths", "99999999999999"]),
        ("deep_dog", ["conv", "--widths", "999999"]),
        ("deep_dog", ["--epochs", "100000000"]),
        ("deep_dog", ["--epochs", "1" + 21 * "0"]),
        ("deep_dog", ["--image-size", "30000"]),
        ("grad_flow", ["sweep", "--width", "100000000"]),
        ("grad_flow", ["sweep", "--seeds", "1000000000000000"]),
        ("grad_flow", ["race", "--depth", "1000000000"]),
        ("grad_flow", ["lecture", "--steps", "1000000000000"]),
        ("grad_flow", ["phase", "--activation", "tanh", "--points", "1000000"]),
    ],
)
def test_every_program_refuses_what_would_not_fit(program, args, tmp_path, monkeypatch, capsys):
    module = load_program(program)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [program, *args])
    with pytest.raises(InputError) as caught:
        module.main()
    assert f"{args[-2]} {args[-1]}" in str(caught.value) or args[-1] in str(caught.value)
    assert "\n" not in str(caught.value)
