"""The scale of training: flags over `--set`, over the file, over the defaults; and what Ray is asked for."""

import argparse
from pathlib import Path

import pytest

from configs.settings import SettingsError, TrainingSettings
from training import cluster, tune
from training.scale import add_flag, add_scale, scale_of

FILE = """
applications:
  - args:
      training:
        workers: 3
        restarts: 4
        storage_dir: /records
        search: {trials_at_once: 5}
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "serve_config.yaml"
    path.write_text(FILE)
    return str(path)


def scale(*arguments: str) -> TrainingSettings:
    parser = argparse.ArgumentParser()
    add_scale(parser)
    add_flag(parser, "--workers", "workers", type=int)
    add_flag(parser, "--gpu", "gpus_per_worker", action="store_const", const=1)
    return scale_of(parser.parse_args(arguments))


def test_without_arguments_the_defaults_hold() -> None:
    assert scale() == TrainingSettings()


def test_the_file_wins_over_defaults_set_over_the_file_and_flags_over_both(config: str) -> None:
    file = scale("--config", config)
    assert (file.workers, file.restarts, file.cpus_per_worker) == (3, 4, 1)
    assert (file.storage_dir, file.search.trials_at_once) == (Path("/records"), 5)
    over = ["--config", config, "--set", "training.workers=2", "--set", "training.search.cpus_per_trial=0.5"]
    given = scale(*over)
    assert (given.workers, given.restarts) == (2, 4)
    assert (given.search.cpus_per_trial, given.search.trials_at_once) == (0.5, 5)
    flagged = scale(*over, "--workers", "1", "--storage", "/elsewhere", "--gpu")
    assert (flagged.workers, flagged.gpus_per_worker, flagged.restarts) == (1, 1, 4)
    assert flagged.storage_dir == Path("/elsewhere")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "training.worker=2"], "'training.worker'; did you mean 'workers'"),
        (["--set", "training.search.trials=2"], "'training.search.trials'; did you mean 'trials_at_once'"),
        (["--set", "training.workers"], "--set takes KEY=VALUE"),
        (["--workers", "0"], "training.workers"),
        (["--set", "training.gpus_per_worker=2"], "training.gpus_per_worker"),
        (
            ["--set", "training.search={local_cpus: 1, cpus_per_trial: 2}"],
            r"local_cpus \(1\) must be at least",
        ),
        (["--config", "/nowhere.yaml"], "/nowhere.yaml cannot be read"),
    ],
)
def test_what_is_wrong_is_named(arguments: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        scale(*arguments)


@pytest.mark.parametrize("main", [cluster.main, tune.main])
def test_commands_refuse_unknown_settings_before_they_start_anything(
    main: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--output", str(tmp_path / "m")] if main is cluster.main else ["--table", str(tmp_path / "t.csv")]
    assert callable(main)
    assert main(["--csv", "none.csv", *out, "--set", "training.worker=2"]) == 1
    assert "did you mean 'workers'" in capsys.readouterr().err


def test_a_search_gets_a_cluster_on_which_a_trial_fits() -> None:
    assert tune._local_cpus(TrainingSettings().search.model_copy(update={"cpus_per_trial": 999.5})) == 1000
    assert tune._local_cpus(TrainingSettings().search.model_copy(update={"local_cpus": 3})) == 3


def test_ray_train_is_asked_for_what_the_settings_say() -> None:
    pytest.importorskip("pandas", reason="the train extra is not installed")
    pytest.importorskip("pyarrow", reason="the train extra is not installed")
    asked = cluster.scaling_of(TrainingSettings(workers=3, cpus_per_worker=2.5, gpus_per_worker=1))
    assert (asked.num_workers, asked.num_cpus_per_worker, asked.num_gpus_per_worker) == (3, 2.5, 1)
    asked = cluster.scaling_of(TrainingSettings(workers=2))
    assert (asked.num_workers, asked.num_cpus_per_worker, asked.use_gpu) == (2, 1, False)
