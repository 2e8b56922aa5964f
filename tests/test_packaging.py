"""What is built of the package runs away from its sources: the source distribution, and the wheel made of it."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv

import pytest
import tensorflow as tf
from conftest import repository

FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "NOTICE")
PACKAGES = ("transform", "trainer", "serving", "tfx_pipeline")
PROGRAM = """
import logging
logging.basicConfig(level="INFO")
import tensorflow as tf
from trainer.ops.structured_attention import structured_attention
print(structured_attention(*[tf.ones((1, 1, 4, 8))] * 3).numpy().min(), tf.__file__)
"""


def run(*command, cwd, **environment):
    variables = {**os.environ, "TF_USE_LEGACY_KERAS": "0", "PYTHONPATH": "", **environment}
    found = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout + found.stderr


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    for name in FILES:
        shutil.copy(repository() / name, folder)
    for name in PACKAGES:
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
    said = run(*install, "--ignore-installed", str(sdist), cwd=tmp_path, CXX=compiler)
    assert ("onerank: the operations in C++ are not built" in said) == (not there)
    found = run(python, "-c", PROGRAM, cwd=tmp_path)
    assert ("Kernels of attention, norms and GELU: fused" in found) == there, found
    library = f"libonerank_ops_tf{tf.__version__}.so"
    assert there or f"Kernels of attention, norms and GELU: portable ({library} is not built)" in found
