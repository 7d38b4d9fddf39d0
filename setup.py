"""Build of the Cython data path; everything declarative is in pyproject.toml."""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

SOURCE = Path("src")
#: Modules that use io_uring; they alone link against liburing.
NEEDS_LIBURING = {
    "nvme_mdev.bench.floor",
    "nvme_mdev.datapath.backends.encrypted",
    "nvme_mdev.datapath.backends.passthru",
    "nvme_mdev.datapath.backends.uring",
    "nvme_mdev.datapath.uring",
    "nvme_mdev.host.ublk",
}
#: Likewise, of OpenSSL's libcrypto: loaded by the first namespace that has a key.
NEEDS_LIBCRYPTO = {"nvme_mdev.datapath.cipher"}

COMPILE_ARGS = [
    "-O3",
    "-g",
    # What Debian's Python compiles extensions with and other builds of Python do not: the same code
    # from each, as hard for a hostile guest, and the same instructions in benchmarks/budget.toml.
    "-fstack-protector-strong",
    "-fwrapv",
    "-fno-strict-aliasing",
    "-fno-semantic-interposition",
    "-Wall",
    "-Wextra",
    # Cython's own boilerplate has unused parameters, functions and casts between callbacks.
    "-Wno-unused-parameter",
    "-Wno-unused-function",
    "-Wno-cast-function-type",
    "-Wno-missing-field-initializers",
    "-Wno-sign-compare",
]
if os.environ.get("NVME_MDEV_WERROR") == "1":
    COMPILE_ARGS.append("-Werror")


def extension(path: Path) -> Extension:
    name = ".".join(path.with_suffix("").relative_to(SOURCE).parts)
    return Extension(
        name,
        [str(path)],
        include_dirs=[str(SOURCE / "nvme_mdev" / "datapath")],
        libraries=["uring"] * (name in NEEDS_LIBURING) + ["crypto"] * (name in NEEDS_LIBCRYPTO),
        extra_compile_args=COMPILE_ARGS,
        define_macros=[("_GNU_SOURCE", "1")],
    )


setup(
    ext_modules=cythonize(
        [extension(path) for path in sorted(SOURCE.glob("nvme_mdev/**/*.pyx"))],
        include_path=[str(SOURCE)],
        compiler_directives={
            "language_level": 3,
            # C's division: every divisor of the data path is a constant or checked.
            "cdivision": True,
            "embedsignature": False,
            "freethreading_compatible": False,
        },
        build_dir="build/cython",
        nthreads=os.cpu_count() or 1,
    ),
    options={"build_ext": {"parallel": os.cpu_count() or 1}},
)
