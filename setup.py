"""Set-up: everything is declared in pyproject.toml but the operations in C++, which are built here where it can be."""

import glob
import os
import platform
import shutil

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
try:
    import tensorflow
except ImportError:
    tensorflow = None

SOURCES = "trainer/ops/cc"
X86 = platform.machine() in ("x86_64", "AMD64")
# The kernels' builds: the floats of a vector, and the instructions. Which one runs is chosen at run time.
KERNELS = {"plain": (4, [])}
if X86:
    KERNELS["avx2"] = (8, ["-march=x86-64-v3"])
    KERNELS["avx512"] = (16, ["-march=x86-64-v4", "-mprefer-vector-width=512"])
FLAGS = ["-O3", "-g0", "-fPIC", "-std=c++17", "-ffp-contract=fast", "-fvisibility=hidden", "-Wno-psabi"]
FLAGS += ["-fno-tree-loop-distribute-patterns"]  # rows are short: no calls of memcpy for them
FLAGS += ["-Wno-maybe-uninitialized", "-Wno-uninitialized"]  # g++ 12's own headers


class BuildOperations(build_ext):
    """Builds the operations against the TensorFlow that is installed, or says in one line why not."""

    def run(self):
        """Builds; without a compiler or TensorFlow there is nothing to build, and portable code serves."""
        why_not = self._why_not()
        if why_not:
            self.extensions = []
            print(f"onerank: the operations in C++ are not built, portable code will be used: {why_not}", flush=True)
        super().run()

    def get_ext_filename(self, fullname):
        """It is a library for one version of TensorFlow, not a module of Python's."""
        *folders, name = fullname.split(".")
        version = tensorflow.__version__ if tensorflow else ""  # setuptools asks for the name whether it builds or not
        return os.path.join(*folders, f"{name}_tf{version}.so")

    def build_extension(self, ext):
        """Compiles the kernels once for each set of instructions, and links them with the operations."""
        options = FLAGS + os.environ.get("ONERANK_CXXFLAGS", "").split()
        macros = [("ONERANK_TENSORFLOW", f'"{tensorflow.__version__}"')] + [("ONERANK_X86", "1")] * X86
        kernels, *others = ext.sources
        objects = []
        for name, (lanes, instructions) in KERNELS.items():
            objects += self.compiler.compile(
                [kernels],
                output_dir=os.path.join(self.build_temp, name),
                macros=[("ONERANK_KERNELS", name), ("ONERANK_LANES", str(lanes))],
                extra_postargs=options + instructions,
            )
        headers = [flag for flag in tensorflow.sysconfig.get_compile_flags() if "std=" not in flag]
        objects += self.compiler.compile(
            others, output_dir=self.build_temp, macros=macros, extra_postargs=options + headers
        )
        self.compiler.link_shared_object(
            objects,
            self.get_ext_fullpath(ext.name),
            extra_postargs=options + tensorflow.sysconfig.get_link_flags(),
            target_lang="c++",
        )

    def _why_not(self):
        compiler = os.environ.get("CXX", "g++").split()[0]
        if shutil.which(compiler) is None:
            return f"there is no C++ compiler ({compiler}); install one or set CXX"
        os.environ.setdefault("CXX", compiler)
        if tensorflow is None:
            return (
                "TensorFlow is not there while building; install it first, then this package with --no-build-isolation"
            )
        return None


setup(
    ext_modules=[
        Extension(
            "trainer.ops.libonerank_ops",
            [f"{SOURCES}/{name}.cc" for name in ("kernels", "dispatch", "attention_op", "rows_op")],
            depends=glob.glob(f"{SOURCES}/*.h"),
            optional=True,  # where they do not compile, portable code serves as well
        )
    ],
    cmdclass={"build_ext": BuildOperations},
)
