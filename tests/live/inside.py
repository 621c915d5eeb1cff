"""Runs cases in ComfyUI's own Python, without a server: what only its own code can show, on a pretended GPU.

As a script: the folder of ComfyUI, a folder to write in, files of cases. Each function `case_…` of theirs is called
with a folder; what it raised is written, as JSON by its name, to `outcomes.json`.
"""

import gc
import importlib
import importlib.util
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from unittest import SkipTest

HERE = Path(__file__).resolve().parent
PACK = HERE.parent.parent
SKIPPED = "skipped: "
OUTCOMES = "outcomes.json"
CASE = "case_"


def loaded(name: str, path: Path, folder: Path | None = None) -> ModuleType:
    """The module of a file, under that name; the package of a folder where one is named."""
    search = None if folder is None else [str(folder)]
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=search)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def outcome(case: Callable[[Path], None], folder: Path) -> str | None:
    """What a case raised, None where it passed, a reason behind `SKIPPED` for one that was skipped."""
    import comfy.model_management

    gc.collect()
    comfy.model_management.current_loaded_models.clear()
    folder.mkdir(parents=True)
    try:
        case(folder)
    except SkipTest as skipped:
        return f"{SKIPPED}{skipped}"
    except Exception:
        return traceback.format_exc()
    return None


def need(package: str) -> None:
    """Skips a case where ComfyUI's Python lacks a package that the pack does not require."""
    if importlib.util.find_spec(package) is None:
        raise SkipTest(f"{package} is not installed in ComfyUI's Python")


def main(comfyui: str, folder: str, *files: str) -> None:
    sys.path.append(comfyui)
    importlib.import_module("utils.extra_config")  # as main.py does, before nodes.py puts another `utils` in its way
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import folder_paths

    folder_paths.models_dir = str(Path(folder) / "models")
    folder_paths.set_temp_directory(str(Path(folder) / "temp"))
    loaded("i2v_tensorrt", PACK / "__init__.py", PACK)
    from i2v_tensorrt.nodes.host import folders

    folders.register_folders()
    found: dict[str, str | None] = {}
    for path in map(Path, files):
        module = loaded(f"i2v_tensorrt.tests.live.{path.stem}", path)
        cases = {name: value for name, value in vars(module).items() if name.startswith(CASE)}
        found |= {name: outcome(case, Path(folder) / name) for name, case in cases.items()}
    (Path(folder) / OUTCOMES).write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
