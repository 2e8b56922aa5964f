"""What is built of the package runs away from its sources: the source distribution, and the wheel made of it.

So do its extras: each in an environment with its packages alone.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
import tensorflow as tf
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.testing.repository import repository
from tests.testing.tiers import costly

FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "NOTICE")
FOLDERS = ("onerank", "transform", "trainer", "serving", "tfx_pipeline")
PROGRAM = """
import logging
logging.basicConfig(level="INFO")
import tensorflow as tf
from trainer.ops.attention.structured_attention import structured_attention
print(structured_attention(*[tf.ones((1, 1, 4, 8))] * 3).numpy().min(), tf.__file__)
"""


def tried(*command, cwd, **environment):
    variables = {**os.environ, "TF_USE_LEGACY_KERAS": "0", "PYTHONPATH": "", **environment}
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, check=False)


def run(*command, cwd, **environment):
    found = tried(*command, cwd=cwd, **environment)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout + found.stderr


@pytest.fixture(scope="module")
@costly("slow")
def sdist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    for name in FILES:
        shutil.copy(repository() / name, folder)
    for name in FOLDERS:
        shutil.copytree(repository() / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    program = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    run(sys.executable, "-c", program, cwd=folder)
    (archive,) = (folder / "dist").glob("*.tar.gz")
    return archive


@pytest.mark.parametrize("compiler", ["g++", "no-such-compiler"])
def test_an_installed_package_has_the_operations_where_there_is_a_compiler(sdist, compiler, tmp_path):
    """In a new environment, with TensorFlow and the tools that build from this one."""
    there = shutil.which(compiler) is not None
    if compiler == "g++" and not there:
        pytest.skip("there is no g++")
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    python = str(tmp_path / "env/bin/python")
    packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    with open(os.path.join(packages, "shared.pth"), "w") as file:
        file.write(sysconfig.get_path("purelib"))
    install = [python, "-m", "pip", "install", "--verbose", "--no-build-isolation", "--no-deps", "--no-index"]
    # Not optimized, which takes a third of the time: `make setup` compiles as it is meant.
    said = run(*install, "--ignore-installed", str(sdist), cwd=tmp_path, CXX=compiler, ONERANK_CXXFLAGS="-O0")
    assert ("onerank: the operations in C++ are not built" in said) == (not there)
    found = run(python, "-c", PROGRAM, cwd=tmp_path)
    assert ("Kernels of attention, norms and GELU: fused" in found) == there, found
    library = f"libonerank_ops_tf{tf.__version__}.so"
    assert there or f"Kernels of attention, norms and GELU: portable ({library} is not built)" in found


# === The wheel ===


@pytest.fixture(scope="module")
def wheel(sdist):
    build = ("-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index", "--quiet", str(sdist))
    run(sys.executable, *build, cwd=sdist.parent, CXX="no-such-compiler")
    (archive,) = sdist.parent.glob("*.whl")
    return archive


@pytest.fixture(scope="module")
def metadata(wheel, tmp_path_factory):
    return Distribution.at(unpacked(wheel, tmp_path_factory.mktemp("wheel")))


def unpacked(wheel, folder):
    """Unpacks the wheel, as its installation does; returns the folder with its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    (info,) = Path(folder).glob("*.dist-info")
    return info


def test_the_wheel_has_the_code_its_templates_and_the_licences_and_nothing_else(wheel):
    expected = {
        str(path.relative_to(repository()))
        for folder in FOLDERS
        for path in (repository() / folder).rglob("*")
        if path.suffix in (".py", ".html")
    }
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    information = {name.partition("/")[2] for name in names if ".dist-info/" in name}
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert {"METADATA", "RECORD", "licenses/LICENSE", "licenses/NOTICE"} <= information


# === Versions ===

STACKS = {"3.10": "stack-a", "3.11": "stack-b", "3.12": "stack-b", "3.13": "stack-b"}


def applies(requirement, python, extra=""):
    """Whether a requirement counts in a version of Python, for those who ask for an extra."""
    environment = {"python_version": python, "python_full_version": f"{python}.9", "extra": extra}
    return requirement.marker is None or requirement.marker.evaluate(environment)


def requirements(metadata, python, extra=""):
    """What an extra adds to the base, or the base's own."""
    all_of = [Requirement(text) for text in metadata.requires]
    base = [of for of in all_of if applies(of, python)]
    return [of for of in all_of if of not in base and applies(of, python, extra)] if extra else base


def constraints():
    text = (repository() / "requirements/constraints.txt").read_text(encoding="utf-8")
    return [Requirement(line) for line in text.splitlines() if not line.startswith("#")]


def test_the_constraints_are_those_of_the_locks():
    locks = [f"requirements/{stack}.lock" for stack in ("stack-a", "stack-b")]
    made = run(sys.executable, "scripts/make_constraints.py", *locks, cwd=repository())
    assert made == (repository() / "requirements/constraints.txt").read_text(encoding="utf-8"), "run make lock"


@pytest.mark.parametrize("python", STACKS)
def test_a_version_of_python_has_one_constraint_a_package(python):
    names = [of.name for of in constraints() if applies(of, python)]
    assert len(names) > 100
    assert len(names) == len(set(names))


@pytest.mark.parametrize("python", STACKS)
def test_what_the_package_requires_is_what_the_locks_have(metadata, python):
    """Within the requirement's bounds; what no lock has is bounded on both sides."""
    locked = {of.name: str(of.specifier).lstrip("=") for of in constraints() if applies(of, python)}
    for extra in ("", *metadata.metadata.get_all("Provides-Extra")):
        for of in requirements(metadata, python, extra):
            name = canonicalize_name(of.name)
            signs = {part.operator for part in of.specifier}
            if name in locked:
                assert of.specifier.contains(locked[name]), f"{extra}: {of}, but the lock has {locked[name]}"
            elif name != "onerank":
                assert signs & {"==", "~="} or signs >= {">=", "<"}, f"{extra}: {of} is in no lock and has no bounds"


# === Extras ===

# Imports the modules that are named; all of a package where a star follows its name.
IMPORTS = """
import importlib, pkgutil, sys
from transform.environment import prepare_environment
prepare_environment()
for name in sys.argv[1:]:
    package = importlib.import_module(name.removesuffix(".*"))
    if name.endswith(".*"):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            # the tests of models' contract need pytest, which whoever tests a model of his own has
            needs_more = "airflow" in module.name or module.name == "trainer.testing.model_contract"
            if not needs_more and not module.name.startswith("trainer.ops.libonerank_ops"):
                importlib.import_module(module.name)
"""


@pytest.fixture(scope="module")
def environments(wheel, metadata, tmp_path_factory):
    """A function from an extra to the interpreter of an environment as pip would make it, of links to this one's."""
    python = ".".join(map(str, sys.version_info[:2]))
    made = {}

    def packages(name, extras, found):
        """Adds a package and what it requires, with its extras, to those that were found."""
        if (name, extras) not in found:
            found[name, extras] = package = metadata if name == "onerank" else distribution(name)
            for of in map(Requirement, package.requires or ()):
                if any(applies(of, python, extra) for extra in ("", *extras)):
                    packages(canonicalize_name(of.name), tuple(sorted(of.extras)), found)
        return found

    def make(extra):
        if extra not in made:
            folder = tmp_path_factory.mktemp(extra or "base")
            venv.create(folder, with_pip=False, symlinks=True)
            made[extra] = str(folder / "bin/python")
            show = "import sysconfig; print(sysconfig.get_path('purelib'))"
            site = Path(run(made[extra], "-c", show, cwd=folder).strip())
            unpacked(wheel, site)
            found = packages("onerank", (extra,) if extra else (), {})
            for package in {name: package for (name, _), package in found.items() if name != "onerank"}.values():
                for top in {file.parts[0] for file in package.files} - {"..", "__pycache__"}:
                    if not (site / top).exists():  # packages share `google`
                        (site / top).symlink_to(package.locate_file(top))
        return made[extra]

    return make


@pytest.mark.parametrize(
    ("extra", "modules"),
    [
        ("", ["onerank.cli", "transform.spec.loading", "transform.datasets.*"]),
        ("client", ["serving.client.__main__"]),
        ("redis", ["serving.client.redis_user_state_cache"]),
        ("serving", ["serving.server.*", "serving.client.grpc_transport"]),
        (
            "train",
            [
                "transform.*",
                "trainer.*",
                "serving.tools.score_log",
                "serving.tools.example_request",
                "serving.tools.server_config",
                "onerank.commands.*",
            ],
        ),
        ("tfx", ["tfx_pipeline.*"]),
    ],
)
def test_an_extra_has_all_that_its_part_imports(environments, extra, modules, tmp_path):
    run(environments(extra), "-c", IMPORTS, *modules, cwd=tmp_path)


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("tfx_pipeline.runners.local", "tfx"),
        ("serving.server", "serving"),
        ("serving.client", "client"),
        ("serving.tools.score_log", "train"),
        ("transform.ingest.aggregates.export", "train"),
    ],
)
def test_a_program_without_its_extra_says_so_in_a_line(environments, module, extra, tmp_path):
    found = tried(environments(""), "-m", module, "--help", cwd=tmp_path)
    assert found.returncode == 1
    assert found.stdout == ""
    (line,) = found.stderr.splitlines()
    assert line.startswith(f"error: {module.split('.runners')[0]}: ")
    assert line.endswith(f'pip install "onerank[{extra}]"')
    assert ("tensorflow" in line) == (extra != "client")


@pytest.mark.parametrize(("command", "extra"), [("run", "tfx"), ("train", "train"), ("rank", "client")])
def test_a_command_without_its_extra_says_so_in_a_line(environments, command, extra, tmp_path):
    arguments = ("--spec", "x.yaml", "--data", ".", "--output", "out")
    found = tried(environments(""), "-m", "onerank", command, *arguments, cwd=tmp_path)
    assert (found.returncode, found.stdout) == (1, "")
    (line,) = found.stderr.splitlines()
    assert line.startswith("error: ") and line.endswith(f'pip install "onerank[{extra}]"')


def test_an_import_without_its_extra_says_so(environments, tmp_path):
    found = tried(environments(""), "-c", "import trainer", cwd=tmp_path)
    assert found.returncode == 1
    assert found.stderr.splitlines()[-1].startswith("transform.extras.MissingExtra: trainer: the packages of the extra")
    program = "try: import trainer\nexcept ImportError as error: print(error)"
    found = run(environments(""), "-c", program, cwd=tmp_path)
    assert "Missing: keras." in found
    assert found.strip().endswith('pip install "onerank[train]"')


def test_the_client_brings_no_tensorflow_and_says_what_grpc_needs(environments, tmp_path):
    python = environments("client")
    run(python, "-c", "from serving.client import Ranker; Ranker('http://localhost:1', 'm').close()", cwd=tmp_path)
    (tmp_path / "request.json").write_text('{"user": {}, "candidates": []}')
    ask = ("-m", "serving.client", "--model", "m", "--request", "request.json", "--address", "grpc://localhost:1")
    found = tried(python, *ask, cwd=tmp_path)
    assert found.returncode == 1
    (line,) = found.stderr.splitlines()
    assert line.startswith("error: address: http:// or https:// is expected")
    assert line.endswith('pip install "onerank[serving]"')
