"""Numbers that make no sense on a command line are refused in a sentence, before anything is read."""

from collections.abc import Callable

import pytest

from serve_app.jobs import build_index, evaluate_index
from training import images, text, tune


@pytest.mark.parametrize(
    ("main", "needed", "wrong"),
    [
        (text.main, "--csv x --output x", ("--epochs 0", "--batch-size 2.5", "--lr nan", "--lr -1")),
        (text.main, "--csv x --output x", ("--label-smoothing 2", "--test nan", "--validation inf")),
        (images.main, "--folder x --output x", ("--hidden -1", "--epochs -1", "--batch-size 0", "--lr inf")),
        (tune.main, "--csv x --table x", ("--trials 0", "--epochs -1", "--seed -1")),
        (build_index.main, "x x", ("--workers 0", "--cpus nan", "--batch 10001")),
        (evaluate_index.main, "x", ("--queries 0", "--k many")),
    ],
)
def test_a_number_that_makes_no_sense_is_refused(
    main: Callable[[list[str]], int],
    needed: str,
    wrong: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for flag, value in (argument.split() for argument in wrong):
        with pytest.raises(SystemExit, match="2"):
            main([*needed.split(), flag, value])
        last = capsys.readouterr().err.splitlines()[-1]
        assert f"error: argument {flag}: '{value}' is not a " in last
