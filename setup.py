"""Build the engine against the Unicorn wheel; everything else is in pyproject.toml.

`TT_SANITIZE=1` in the environment builds an engine for tests (`.ci/sanitized`): it checks each of its
own accesses to memory, and guest pages lie scattered (`tt/vmm/engine/memory.h`).
"""

import os
import sys
from importlib.resources import files
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ENGINE = Path("tt/vmm/engine")
FLAGS = ["-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unused-parameter"]
SANITIZE = (
    ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"] if os.getenv("TT_SANITIZE") else []
)
if SANITIZE:
    FLAGS += [*SANITIZE, "-g", "-fno-omit-frame-pointer", "-DTT_SCATTER"]
unicorn = Path(str(files("unicorn")))

engine = Extension(
    "tt.vmm.engine._engine",
    sources=[str(ENGINE / name) for name in ("_engine.pyx", *sorted(p.name for p in ENGINE.glob("*.c")))],
    depends=[str(path) for path in sorted((*ENGINE.glob("*.h"), *ENGINE.glob("*.pxd")))],
    include_dirs=[str(ENGINE), str(unicorn / "include")],
    # By full path: "-lunicorn" would pick the static archive, a second emulator in the process.
    extra_objects=[str(unicorn / "lib" / "libunicorn.so.2")],
    runtime_library_dirs=["$ORIGIN/../../../unicorn/lib"],
    extra_compile_args=["-std=gnu11", "-O2", *FLAGS],
    extra_link_args=SANITIZE,
)
pages = Extension(
    "tt.log._pages",
    sources=["tt/log/_pages.pyx"],
    extra_compile_args=["-std=gnu11", "-O3", *FLAGS],
    extra_link_args=SANITIZE,
)
crc32c = Extension(
    "tt.vmm.boot._crc32c",
    sources=["tt/vmm/boot/_crc32c.pyx"],
    extra_compile_args=["-std=gnu11", "-O2", *FLAGS],
    extra_link_args=SANITIZE,
)


class Build(build_ext):
    """Build the engine, and the demo guest of the Denali machine, which ships inside the package."""

    def run(self) -> None:
        super().run()
        # By path, and with a `tt` in which nothing is looked for: the package itself wants a built engine.
        spec = spec_from_file_location("guest_build", "tt/vmm/denali/guest_build.py")
        assert spec is not None and spec.loader is not None
        guest_build = module_from_spec(spec)
        package = Path("tt") if self.inplace else Path(self.build_lib) / "tt"
        bare = ModuleType("tt")
        bare.__path__ = ["tt"]  # it imports tt.errors, which imports nothing
        sys.modules["tt"] = bare
        spec.loader.exec_module(guest_build)
        guest_build.build_kit(Path("guests/denali"), package / "_guests" / "denali")


setup(
    ext_modules=cythonize([engine, pages, crc32c], build_dir="build", language_level=3),
    cmdclass={"build_ext": Build},
)
