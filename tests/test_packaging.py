"""What is shipped, what importing costs, and that the floors of the architecture are kept."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

import torch_thermo

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "torch_thermo"

# The plugin's and the extras' packages, and the oracles: not needed by floors 1 to 3.
HEAVY = (
    "curvlinops",
    "hypothesis",
    "jsonargparse",
    "lightning",
    "lightning_fabric",
    "matplotlib",
    "mlxtend",
    "pandas",
    "pyhessian",
    "pytorch_lightning",
    "rich",
    "scipy",
    "tensorboard",
    "torchmetrics",
    "torchvision",
)


def python(code: str, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new interpreter that finds modules in `path` first."""
    env = {**os.environ, "PYTHONPATH": str(path or "")}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )


def sources(folder: Path) -> set[str]:
    """The files of the package below `folder`, with paths as a wheel writes them."""
    return {
        file.relative_to(folder).as_posix()
        for file in (folder / "torch_thermo").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }


# --- importing ---------------------------------------------------------------------------------


def test_import_loads_torch_and_numpy_only(tmp_path: Path) -> None:
    code = f"import sys, torch_thermo; print([m for m in {HEAVY!r} if m in sys.modules])"
    run = python(code, tmp_path, ROOT)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"


def test_floors_one_to_three_import_without_the_other_packages(tmp_path: Path) -> None:
    above = ("callbacks", "papers", "tensorboard_tab", "cli.py")
    modules = sorted(
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in sources(ROOT)
        if name.endswith(".py") and name.split("/")[1] not in above
    )
    assert "torch_thermo" in modules
    code = f"""
import importlib, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
for name in {modules!r}:
    importlib.import_module(name)
print(len({modules!r}))
"""
    run = python(code, tmp_path, ROOT)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) == len(modules)


def test_callbacks_is_a_link_that_refuses_to_be_a_second_package(tmp_path: Path) -> None:
    link = ROOT / "callbacks"
    assert link.is_symlink()
    assert os.readlink(link) == os.path.join("torch_thermo", "callbacks")
    run = python("import callbacks", tmp_path, ROOT)
    assert run.returncode != 0
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError")
    assert "torch_thermo.callbacks" in last


# --- what is shipped -----------------------------------------------------------------------------


def build(out: Path, *options: str) -> Path:
    """Build the checkout into `out`, offline."""
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), *options]
    run = subprocess.run([*command, str(ROOT)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return out


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution and the wheel that was made from it."""
    return build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="session", params=["source distribution", "checkout"])
def wheel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel made from either: only the checkout has the link `callbacks`."""
    if request.param == "checkout":
        folder = build(tmp_path_factory.mktemp("wheel"), "--wheel")
    else:
        folder = request.getfixturevalue("built")
    [file] = folder.glob("torch_thermo-*-py3-none-any.whl")
    return file


@pytest.fixture(scope="session")
def unpacked(built: Path) -> Path:
    """The source distribution's folder."""
    [file] = built.glob("torch_thermo-*.tar.gz")
    with tarfile.open(file) as archive:
        names = {name.split("/")[0] for name in archive.getnames()}
        archive.extractall(built / "unpacked")
    [name] = names
    return built / "unpacked" / name


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    info = wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info"
    package = {name for name in names if not name.startswith(info + "/")}
    assert package == sources(ROOT)
    assert {"torch_thermo/py.typed", "torch_thermo/callbacks/__init__.py"} <= package
    assert f"{info}/licenses/LICENSE" in names


def test_wheel_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info"
        metadata = message_from_string(archive.read(f"{info}/METADATA").decode())
        scripts = archive.read(f"{info}/entry_points.txt").decode()
    assert metadata["Name"] == "torch-thermo"
    assert metadata["Version"] == torch_thermo.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("Provides-Extra", [])) == {"papers", "reference", "dev"}
    assert "torch-thermo = torch_thermo.cli:main" in scripts


def test_source_distribution_holds_the_package_once(unpacked: Path) -> None:
    assert sources(unpacked) == sources(ROOT)
    top = {entry.name for entry in unpacked.iterdir()}
    assert {"pyproject.toml", "README.md", "LICENSE", "CITATION.cff"} <= top
    assert "callbacks" not in top


def check_import(path: Path, cwd: Path) -> None:
    run = python("import torch_thermo; print(torch_thermo.__file__)", cwd, path)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(str(path))


def test_wheel_imports(wheel: Path, tmp_path: Path) -> None:
    check_import(wheel, tmp_path)


def test_source_distribution_imports(unpacked: Path, tmp_path: Path) -> None:
    check_import(unpacked, tmp_path)


# --- the floors ----------------------------------------------------------------------------------


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on the `torch_thermo` and the `pyproject.toml` in `folder`."""
    pytest.importorskip("importlinter")
    code = (
        "import sys; from importlinter import cli; "
        "sys.exit(cli.lint_imports(no_cache=True) == cli.EXIT_STATUS_ERROR)"
    )
    return python(code, folder, folder)


@pytest.fixture
def skeleton(tmp_path: Path) -> Path:
    """A package of empty files under the project's rules."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    package = tmp_path / "torch_thermo"
    folders = "callbacks dashboard figures observables operators papers spectra".split()
    files = "cli data isolation network risk store symmetry".split()
    for name in ["", *folders]:
        (package / name).mkdir()
        (package / name / "__init__.py").touch()
    for name in files:
        (package / f"{name}.py").touch()
    (package / "__init__.py").write_text("from torch_thermo.risk import Risk\n")
    return tmp_path


def test_floors_are_kept() -> None:
    run = lint_imports(ROOT)
    assert run.returncode == 0, run.stdout + run.stderr
    assert " 0 broken" in run.stdout


def test_rules_allow_what_the_architecture_draws(skeleton: Path) -> None:
    allowed = {
        "operators/one.py": "import torch_thermo.risk, torch_thermo.operators.two",
        "operators/two.py": "import torch_thermo.spectra, torch",
        "observables/one.py": "import torch_thermo.operators, torch_thermo.figures",
        "figures/one.py": "def draw():\n    import matplotlib.pyplot",
        "dashboard/one.py": "def draw():\n    import matplotlib.pyplot",
        "callbacks/one.py": "import lightning, pytorch_lightning, torch_thermo.observables",
        "papers/one.py": "import pytorch_lightning, torch_thermo.callbacks",
        "cli.py": "import pytorch_lightning, torch_thermo.papers, torch_thermo",
    }
    for name, line in allowed.items():
        (skeleton / "torch_thermo" / name).write_text(line + "\n")
    run = lint_imports(skeleton)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize(
    ("contract", "file", "line"),
    [
        ("floors", "operators/one.py", "import torch_thermo.callbacks"),
        ("floors", "data.py", "def load():\n    from torch_thermo import isolation"),
        ("floors", "observables/one.py", "import torch_thermo.dashboard"),
        ("floors", "store.py", "from torch_thermo import Risk"),
        ("floors", "without_a_floor.py", ""),
        ("lightning", "observables/one.py", "import pytorch_lightning"),
        ("lightning", "dashboard/one.py", "def draw():\n    from lightning.pytorch import Trainer"),
        ("matplotlib", "callbacks/one.py", "import matplotlib.pyplot"),
        ("matplotlib", "cli.py", "def show():\n    from matplotlib import pyplot"),
        ("spectra and symmetry", "spectra/one.py", "import torch_thermo.operators"),
        ("spectra and symmetry", "symmetry.py", "import lightning"),
        ("oracles", "spectra/one.py", "def compare():\n    import scipy.linalg"),
    ],
)
def test_rules_refuse(contract: str, file: str, line: str, skeleton: Path) -> None:
    (skeleton / "torch_thermo" / file).write_text(line + "\n")
    run = lint_imports(skeleton)
    assert run.returncode == 1, run.stdout + run.stderr
    broken = [line for line in run.stdout.splitlines() if line.rstrip().endswith("BROKEN")]
    assert any(line.startswith(contract) for line in broken), run.stdout


def test_spectra_and_symmetry_name_no_module_classes() -> None:
    """import-linter sees packages of others as one: that torch.nn is not used is read here."""
    files = [*(PACKAGE / "spectra").glob("*.py"), PACKAGE / "symmetry.py"]
    assert len(files) > 2
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                names = [f"{node.value.id}.{node.attr}"]
            else:
                continue
            for name in names:
                assert not f"{name}.".startswith("torch.nn."), f"{file.name}:{node.lineno}: {name}"
