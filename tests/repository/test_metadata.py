"""What the registry, pip and ComfyUI's Manager are told agrees."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text("utf-8")
LEFT_OUT = [line for line in (ROOT / ".comfyignore").read_text("utf-8").splitlines() if not line.startswith("#")]


def listed(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_pyproject_and_requirements_name_the_same_packages() -> None:
    """By hand, since tomllib is newer than the oldest Python that is served."""
    declared = re.search(r"^dependencies = \[(.*?)\]", PROJECT, re.M | re.S)
    assert declared is not None
    assert re.findall(r'"([^"]+)"', declared[1]) == listed((ROOT / "requirements.txt").read_text("utf-8"))


def test_what_comfyui_owns_is_not_pinned() -> None:
    names = {re.split(r"[<>=!~; ]", line)[0] for line in listed((ROOT / "requirements.txt").read_text("utf-8"))}
    assert not names & {"torch", "numpy", "transformers", "safetensors", "pillow", "av", "aiohttp", "filelock"}
    assert not {name for name in names if name.startswith("onnx")}, "they would replace and move what others need"


def entry(name: str) -> str:
    """A text of pyproject.toml."""
    (found,) = re.findall(rf'^{name} = "(.+)"$', PROJECT, re.MULTILINE)
    return found


def test_the_registry_is_told_what_it_asks_for() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", entry("version"))
    assert re.fullmatch(r"[a-z][a-z0-9-]*", entry("name"))
    assert not entry("name").startswith("comfy")
    assert re.fullmatch(r">=\d+\.\d+\.\d+", entry("requires-comfyui"))
    assert entry("description").endswith(".")
    for name in ("Icon", "Banner"):
        assert (ROOT / entry(name)).is_file()


def test_the_page_s_folder_is_named_once() -> None:
    """In __init__.py, as ComfyUI serves it below the folder's name, where the page looks for help."""
    assert 'WEB_DIRECTORY = "./web"' in (ROOT / "__init__.py").read_text("utf-8")
    assert not re.search(r"^web = ", PROJECT, re.MULTILINE)


def test_the_changelog_begins_with_this_version() -> None:
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert versions[0] in (entry("version"), "Unreleased")


PUBLISH = yaml.safe_load((ROOT / ".github" / "workflows" / "publish.yml").read_text("utf-8"))
STEPS = PUBLISH["jobs"]["publish"]["steps"]


def run_step(number: int, folder: Path, tag: str) -> int:
    """The exit status of a step of the publishing workflow, in a copy of what it reads and as GitHub runs it."""
    for name in ("pyproject.toml", "CHANGELOG.md"):
        shutil.copy(ROOT / name, folder)
    known = {"GITHUB_REF_NAME": tag, "GITHUB_REPOSITORY": "someone/pack", "GITHUB_SERVER_URL": "https://github.com"}
    script = next(step["run"] for step in STEPS[number:] if "run" in step)
    command = ["bash", "-eo", "pipefail", "-c", script]
    return subprocess.run(command, cwd=folder, env={**os.environ, **known}, check=False).returncode


def test_a_tag_publishes() -> None:
    (tags,) = PUBLISH[True]["push"].values()  # `on` is a truth to YAML 1.1
    assert tags == ["v[0-9]+.[0-9]+.[0-9]+"]
    assert STEPS[-1]["uses"].startswith("Comfy-Org/publish-node-action@")
    assert STEPS[-1]["with"] == {"personal_access_token": "${{ secrets.REGISTRY_ACCESS_TOKEN }}"}
    commands = [step.get("run", "") for step in STEPS]
    tested = next(number for number, command in enumerate(commands) if "run.py test" in command)
    assert any("comfy-cli" in command for command in commands[:tested]), "the registry's check would be skipped"


@pytest.mark.skipif(sys.platform != "linux", reason="the workflow runs on Linux")
class TestPublishing:
    @pytest.mark.parametrize(("change", "published"), [("{}", True), ("{}1", False), ("1{}", False), ("0{}.0", False)])
    def test_only_a_tag_that_is_the_version_goes_on(self, change: str, published: bool, tmp_path: Path) -> None:
        tag = "v" + change.format(entry("version"))
        assert (run_step(0, tmp_path, tag) == 0) is published

    def test_the_registry_is_told_where_the_repository_lies(self, tmp_path: Path) -> None:
        tomllib = pytest.importorskip("tomllib", reason="newer than Python 3.10")
        places = [number for number, step in enumerate(STEPS) if "project.urls" in step.get("run", "")]
        assert run_step(places[0], tmp_path, "v1.2.3") == 0
        told = tomllib.loads((tmp_path / "pyproject.toml").read_text("utf-8"))
        raw = "https://raw.githubusercontent.com/someone/pack/v1.2.3/docs"
        assert [told["tool"]["comfy"][name] for name in ("Icon", "Banner")] == [f"{raw}/icon.png", f"{raw}/banner.png"]
        assert told["project"]["urls"] == {"Repository": "https://github.com/someone/pack"}


def test_what_the_archive_leaves_out_is_there_and_imported_by_nothing_else() -> None:
    assert LEFT_OUT == [".ci/", ".github/", "benchmarks/results/", "demo_model/sheets/", "deploy/"]
    assert [folder for folder in LEFT_OUT if not (ROOT / folder).is_dir()] == []
    sources = [path for path in ROOT.glob("*/**/*.py") if path.relative_to(ROOT).parts[0] not in ("tests", ".venv")]
    users = [path for path in sources if "demo_model.training" in path.read_text("utf-8")]
    assert len(sources) > 200 and {path.parent.name for path in users} <= {"training", "evaluation", "cli"}


def test_icon_and_banner_have_the_sizes_that_the_registry_asks_for() -> None:
    with Image.open(ROOT / "docs" / "icon.png") as icon, Image.open(ROOT / "docs" / "banner.png") as banner:
        assert icon.size == (400, 400)
        assert banner.width * 9 == banner.height * 21


@pytest.fixture(scope="module")
def comfy() -> str:
    """comfy-cli's command."""
    found = shutil.which("comfy")
    if found is None:
        pytest.skip("comfy-cli is not installed")
    return found


def run_cli(comfy: str, home: Path, folder: Path, *words: str) -> str:
    """What comfy-cli prints; it keeps its own files in `home`."""
    command = [comfy, "--skip-prompt", "--no-enable-telemetry", *words]
    home.mkdir(exist_ok=True)
    known = {**os.environ, "HOME": str(home), "XDG_CONFIG_HOME": str(home), "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=folder, env=known, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What git keeps, since that is what is published."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("there is no git repository here")
    folder = tmp_path_factory.mktemp("clone") / "pack"
    subprocess.run([git, "clone", "-q", str(ROOT), str(folder)], check=True)
    return folder


def test_the_registry_s_own_check_finds_nothing(comfy: str, clone: Path, tmp_path: Path) -> None:
    told = run_cli(comfy, tmp_path / "home", clone, "node", "validate")
    assert "All validation checks passed" in told
    assert "warning" not in told.lower()


def test_what_is_published_holds_all_that_a_host_needs(comfy: str, clone: Path, tmp_path: Path) -> None:
    run_cli(comfy, tmp_path / "home", clone, "node", "pack")
    with zipfile.ZipFile(clone / "node.zip") as packed:
        names = set(packed.namelist())
    needed = ["__init__.py", "pyproject.toml", "requirements.txt", "LICENSE"]
    needed += [
        path.relative_to(clone).as_posix()
        for folder in ("nodes", "locales", "web", "workflows")
        for path in (clone / folder).rglob("*.*")
    ]
    assert set(needed) - names == set()
    assert not [name for name in names if name.startswith((".venv", ".cache", "out/", *LEFT_OUT))]
