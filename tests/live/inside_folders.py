"""The pack's folders among ComfyUI's."""

from pathlib import Path

import folder_paths

from i2v_tensorrt.nodes.host import folders
from i2v_tensorrt.nodes.model_loader import ModelLoader
from i2v_tensorrt.pipeline.dummies.i2vgen_xl import write_tiny_checkpoint


def case_folders_that_extra_model_paths_has_moved_come_first(folder: Path) -> None:
    """ComfyUI reads that file before it loads any pack."""
    kept = dict(folder_paths.folder_names_and_paths)
    own = Path(folder_paths.models_dir)
    try:
        for key in (folders.MODELS, folders.ENGINES):
            del folder_paths.folder_names_and_paths[key]
        folder_paths.add_model_folder_path(folders.ENGINES, str(folder / "engines"))
        folders.register_folders()
        assert folders.engine_store().root == folder / "engines"
        found = {key: folder_paths.get_folder_paths(key) for key in (folders.MODELS, folders.ENGINES)}
        assert found[folders.ENGINES] == [str(folder / "engines"), str(own / folders.ENGINES)]
        assert found[folders.MODELS] == [str(own / folders.MODELS)]
    finally:
        folder_paths.folder_names_and_paths.clear()
        folder_paths.folder_names_and_paths.update(kept)


def case_a_link_that_leads_nowhere_makes_no_prompt_run_anew(folder: Path) -> None:
    """What changes at every look would be embedded in saved files as no number."""
    kept = dict(folder_paths.folder_names_and_paths)
    try:
        folder_paths.add_model_folder_path(folders.MODELS, str(folder), is_default=True)
        write_tiny_checkpoint(folder / "tiny")
        before = ModelLoader.fingerprint_inputs("tiny")
        (folder / "tiny" / "README.md").symlink_to(folder / "gone")
        after = ModelLoader.fingerprint_inputs("tiny")
        assert isinstance(after, str) and after == ModelLoader.fingerprint_inputs("tiny") != before
    finally:
        folder_paths.folder_names_and_paths.clear()
        folder_paths.folder_names_and_paths.update(kept)
