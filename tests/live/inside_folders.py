"""The pack's folders among ComfyUI's."""

from pathlib import Path

import folder_paths

from i2v_tensorrt.nodes.host import folders


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
