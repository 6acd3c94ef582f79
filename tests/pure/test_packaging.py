"""pyproject.toml and constraints.txt agree: what is tested is exact, and within what is allowed. Wheels hold it all."""

import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
DOCUMENT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = DOCUMENT["project"]
PACKAGES = ("server", "runtime", "models", "configs")
EXTRAS = PROJECT["optional-dependencies"]
INSTALLED = ("demo", "dev", "loadtest")
"""The extras of `make setup`; the others depend on the machine and are not pinned."""
PINS = {
    canonicalize_name(pin.name): pin
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if not line.startswith("#")
    for pin in [Requirement(line)]
}


@pytest.mark.parametrize(
    "requirement", [*PROJECT["dependencies"], *(each for extra in INSTALLED for each in EXTRAS[extra])]
)
def test_every_direct_dependency_has_a_pin_within_its_bounds(requirement: str) -> None:
    wanted = Requirement(requirement)
    pin = PINS.get(canonicalize_name(wanted.name))
    assert pin is not None, f"{wanted.name} has no line in constraints.txt; see CONTRIBUTING.md"
    (specifier,) = pin.specifier
    assert wanted.specifier.contains(specifier.version)


def test_pins_are_exact_and_of_no_local_build() -> None:
    for pin in PINS.values():
        (specifier,) = pin.specifier
        assert specifier.operator == "==" and "+" not in specifier.version and "*" not in specifier.version, str(pin)


def test_the_licence_is_apache_with_nobody_filled_in() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text and "[name of copyright owner]" in text


def test_wheels_hold_every_file_beside_the_modules() -> None:
    """Kernels are compiled where the wheel is installed, and configurations go by their names there."""
    setuptools = DOCUMENT["tool"]["setuptools"]
    kept = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if path.is_dir() or path.suffix in (".py", ".pyc"):
                continue
            home = next(
                folder for folder in path.parents if (folder / "__init__.py").exists() or folder == ROOT / package
            )
            patterns = setuptools["package-data"].get(".".join(home.relative_to(ROOT).parts), [])
            name = str(path.relative_to(home))
            assert any(fnmatch(name, pattern) for pattern in patterns), f"{path} is in no wheel"
            kept.add(path.suffix)
    assert kept == {".cpp", ".h", ".yaml"}
    assert {each.rstrip("*") for each in setuptools["packages"]["find"]["include"]} == set(PACKAGES)
