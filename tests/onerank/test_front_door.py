"""The command `onerank` and the names of `import onerank`."""

import csv
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

import onerank
from onerank.cli import COMMANDS, main
from tests.testing import small_problem
from tests.testing.repository import repository
from transform.extras import MissingExtra


def test_help_lists_every_command_with_a_line(capsys):
    assert main(["--help"]) == 0
    listed = re.findall(r"^  (\w+) +\S.*$", capsys.readouterr().out, re.MULTILINE)
    assert listed == list(COMMANDS)


def test_an_unknown_command_is_one_line_of_error(capsys):
    assert main(["fly"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown command `fly`. Commands: run, ")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_under_its_own_name(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: onerank {command} ")


def test_a_missing_extra_is_one_line_of_error(monkeypatch, capsys):
    def without(module):
        raise MissingExtra(f"{module}: the packages are expected.")

    monkeypatch.setattr("onerank.cli.importlib", SimpleNamespace(import_module=without))
    assert main(["server"]) == 1
    assert capsys.readouterr().err == "error: serving.server.__main__: the packages are expected.\n"


def test_the_import_is_light_and_every_public_name_is_there():
    program = "import sys, onerank; print(*({'keras', 'tensorflow', 'apache_beam', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=repository(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
    assert {name: getattr(onerank, name) for name in onerank.__all__}.keys() <= set(dir(onerank))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = onerank.nothing


@pytest.mark.slow
def test_from_a_log_to_scores_without_tfx(tmp_path, capsys):
    data, output = small_problem.write_data(tmp_path / "data"), tmp_path / "out"
    spec = small_problem.write_spec(tmp_path / "small.yaml")
    arguments = ["--spec", str(spec), "--data", str(data), "--output", str(output)]
    assert main(["export", *arguments]) == 1, "nothing was trained"
    assert "Run `onerank train` first." in capsys.readouterr().err
    assert main(["train", *arguments]) == 0
    assert main(["export", *arguments]) == 0
    assert len(list((output / "prepared").iterdir())) == 1, "prepared once"
    (model,) = (output / "model" / "small").iterdir()
    scores = tmp_path / "scores.csv"
    assert main(["score", "--model", str(model), "--data", str(data), "--output", str(scores)]) == 0
    with scores.open() as file:
        assert all(0 < float(row["buy"]) < 1 for row in csv.DictReader(file))
    log = next(data.glob("log*.csv"))
    log.write_text(log.read_text() + log.read_text().splitlines()[-1] + "\n")
    assert main(["prepare", *arguments]) == 0
    assert len(list((output / "prepared").iterdir())) == 2, "the log has changed"


def run_program_of_the_readme(holds, tmp_path, monkeypatch):
    """Runs the one Python program of README.md that holds a text; what it writes goes to `tmp_path`."""
    programs = re.findall(r"```python\n(.*?)```", (repository() / "README.md").read_text(), re.DOTALL)
    (program,) = (program for program in programs if holds in program)
    monkeypatch.chdir(repository())
    exec(program.replace('"out/', f'"{tmp_path}/'), {})


@pytest.mark.slow
def test_the_readmes_program_from_a_log_to_a_trained_model_runs(tmp_path, monkeypatch, capsys):
    run_program_of_the_readme("onerank.train(", tmp_path, monkeypatch)
    tasks = re.findall(r"^(\w+): AUC 0\.\d{4}$", capsys.readouterr().out, re.MULTILINE)
    assert tasks == ["click", "long_view", "like", "profile_enter"]


def test_the_readmes_program_from_a_spec_to_a_loss_runs(tmp_path, monkeypatch, capsys):
    run_program_of_the_readme("onerank.random_batch(", tmp_path, monkeypatch)
    losses = dict(re.findall(r"^(\w+): loss (\d\.\d{4})$", capsys.readouterr().out, re.MULTILINE))
    assert list(losses) == ["click", "long_view", "like", "profile_enter"]
    assert all(float(loss) > 0 for loss in losses.values())
