"""What only some commands need is installed when it is missing, and then alone."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from i2v_tensorrt.cli import extras
from i2v_tensorrt.cli.environment import Installer


class Noting(Installer):
    def __init__(self) -> None:
        self.installed: list[tuple[Path, ...]] = []

    def install(self, python: Path, requirements: Sequence[Path]) -> None:
        self.installed.append(tuple(requirements))


@pytest.mark.parametrize(("module", "count"), [("json", 0), ("i2v_no_such_module", 1)])
def test_a_fleet_s_packages_are_installed_where_they_are_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str, count: int
) -> None:
    monkeypatch.setattr(extras, "FLEET_MODULES", ("json", module))
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    installer = Noting()
    extras.complete_fleet(installer)
    assert installer.installed == [(extras.FLEET,)] * count


def test_every_package_of_a_fleet_is_named() -> None:
    lines = [line for line in extras.FLEET.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    assert sorted(line.split(">")[0].split("=")[0] for line in lines) == sorted(extras.FLEET_MODULES)
