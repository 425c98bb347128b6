"""Builds the native extension with CMake, where there is what it takes; says in one line what it leaves out and why.

Everything else about the package stands in pyproject.toml, and about the native build in CMakeLists.txt.

The extension is built against the torch of the environment that pip installs into, because it can only be loaded into
that one. pip's isolated builds hide that environment's packages, so its site-packages folder is put back on the path.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def find_torch():
    """The torch of the target environment, or None."""
    site_packages = [sysconfig.get_paths()[key] for key in ("purelib", "platlib")]
    sys.path += [path for path in site_packages if path not in sys.path]
    try:
        import torch
    except ImportError:
        return None
    return torch


def find_compiler() -> str | None:
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return next((path for name in names if name and (path := shutil.which(name))), None)


def find_tool(name: str) -> str:
    """cmake or ninja: of the environment, active or not, else of the system."""
    places = os.pathsep.join([sysconfig.get_paths()["scripts"], os.environ.get("PATH", "")])
    if (path := shutil.which(name, path=places)) is None:
        raise OSError(f"no {name}")
    return path


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    beside = Path(home, "bin", "nvcc") if home else Path("/usr/local/cuda/bin/nvcc")
    return str(beside) if beside.exists() else shutil.which("nvcc")


def toolkit_release(nvcc: str) -> str:
    found = re.search(r"release (\d+\.\d+)", subprocess.check_output([nvcc, "--version"], text=True))
    return found[1] if found else "unknown"


def plan() -> dict:
    """What can be built here: the facts for ``_build.json``, with ``left_out`` telling each part's reason."""
    torch, compiler, nvcc = find_torch(), find_compiler(), find_nvcc()
    facts = {
        "torch": torch and torch.__version__,
        "compiler": compiler and subprocess.check_output([compiler, "--version"], text=True).splitlines()[0],
        "cuda": torch and torch.version.cuda,
        "left_out": {},
    }
    if os.environ.get("GANKERNELS_NATIVE") == "0":
        facts["left_out"]["cpu"] = "not built: GANKERNELS_NATIVE=0"
    elif torch is None:
        facts["left_out"]["cpu"] = "not built: no torch in the environment; install torch first, then gankernels"
    elif compiler is None:
        facts["left_out"]["cpu"] = "not built: no C++ compiler; install g++ or clang++, then gankernels again"
    if "cpu" in facts["left_out"]:
        facts["left_out"]["cuda"] = facts["left_out"]["cpu"]
    elif torch.version.cuda is None:
        facts["left_out"]["cuda"] = f"not built: torch {torch.__version__} has no CUDA"
    elif nvcc is None:
        facts["left_out"]["cuda"] = "not built: no nvcc; set CUDA_HOME to a CUDA toolkit, then install again"
    elif (release := toolkit_release(nvcc)).split(".")[0] != torch.version.cuda.split(".")[0]:
        # Another major release brings a second CUDA runtime into the process, beside torch's.
        facts["left_out"]["cuda"] = (
            f"not built: {nvcc} is of CUDA {release}, torch of CUDA {torch.version.cuda}; "
            f"set CUDA_HOME to a CUDA {torch.version.cuda.split('.')[0]} toolkit, then install again"
        )
    return facts


class BuildNative(build_ext):
    """Runs CMake, puts the extension beside the Python files, and ``_build.json`` beside it."""

    def run(self) -> None:
        facts = self.facts = plan()
        left_out, compiler, inplace = facts["left_out"], self.compiler, self.inplace
        while "cpu" not in left_out:
            try:
                super().run()
                break
            except (OSError, subprocess.CalledProcessError) as error:
                # Once more without CUDA, which must not take the CPU part with it. pip shows this output with -v;
                # without any working toolchain the rest of the package still runs.
                part = "cpu" if "cuda" in left_out else "cuda"
                left_out[part] = f"not built: the native build failed ({error})"
                # run() changes both, and failed before it put them back.
                self.compiler, self.inplace = compiler, inplace
        package = ROOT / "gankernels" if self.inplace else Path(self.build_lib, "gankernels")
        package.mkdir(parents=True, exist_ok=True)
        (package / "_build.json").write_text(json.dumps(facts, indent=2) + "\n")
        for reason in dict.fromkeys(facts["left_out"].values()):
            parts = ", ".join(part for part, why in facts["left_out"].items() if why == reason)
            print(f"gankernels: left out {parts}: {reason}", file=sys.stderr)

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = ROOT / "build" / f"native-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        cuda = "cuda" not in self.facts["left_out"]
        configure = [
            find_tool("cmake"), "-S", ROOT, "-B", build, "-G", "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DGANKERNELS_SITE_PACKAGES={sysconfig.get_paths()['purelib']}",
            f"-DGANKERNELS_CUDA={'ON' if cuda else 'OFF'}",
            "-DGANKERNELS_UNITY=ON",
            # Of the tests nothing is built here, but `make test` builds them beside the objects that it shares with _C.
            f"-DGANKERNELS_BUILD_TESTS={'ON' if (ROOT / 'tests' / 'native').exists() else 'OFF'}",
        ]  # fmt: skip
        if cuda:
            configure += [f"-DCMAKE_CUDA_COMPILER={find_nvcc()}", f"-DCMAKE_CUDA_ARCHITECTURES={cuda_architectures()}"]
        # Each pip run has another isolated environment: what a former one left in the cache is gone.
        if (cache := build / "CMakeCache.txt").exists():
            cache.unlink()
        run(*configure)
        run(find_tool("cmake"), "--build", build, "--target", "_C")
        target.parent.mkdir(parents=True, exist_ok=True)
        # Renamed into place: a process that has the old one mapped keeps it.
        shutil.copy2(build / target.name, target.with_suffix(".new"))
        os.replace(target.with_suffix(".new"), target)

    def get_source_files(self) -> list[str]:
        return [
            "CMakeLists.txt",
            *(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.is_file()),
        ]


def cuda_architectures() -> str:
    """The GPU's own architecture where one is visible, else those that DESIGN names."""
    import torch

    if given := os.environ.get("GANKERNELS_CUDA_ARCHITECTURES"):
        return given
    if torch.cuda.is_available():
        return "".join(map(str, torch.cuda.get_device_capability()))
    return "80;90;100"


def run(*command: object) -> None:
    subprocess.check_call([str(part) for part in command])


setup(ext_modules=[Extension("gankernels._C", sources=[])], cmdclass={"build_ext": BuildNative})
