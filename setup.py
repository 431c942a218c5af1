"""Build the engine against the Unicorn wheel; everything else is in pyproject.toml."""

from importlib.resources import files
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

ENGINE = Path("tt/vmm/engine")
unicorn = Path(str(files("unicorn")))

engine = Extension(
    "tt.vmm.engine._engine",
    sources=[str(ENGINE / name) for name in ("_engine.pyx", "layout.c", "mmu.c", "cpu.c", "denali.c", "digest.c")],
    depends=[str(ENGINE / "core.h")],
    include_dirs=[str(ENGINE), str(unicorn / "include")],
    # By full path: "-lunicorn" would pick the static archive, a second emulator in the process.
    extra_objects=[str(unicorn / "lib" / "libunicorn.so.2")],
    runtime_library_dirs=["$ORIGIN/../../../unicorn/lib"],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Wno-unused-parameter"],
)

setup(ext_modules=cythonize([engine], build_dir="build", language_level=3))
