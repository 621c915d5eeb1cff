"""Which C++ compiler Inductor is given, and what is said where there is none that will do."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import filelock
import pytest
import torch

from i2v_tensorrt.common.errors import BackendUnavailableError, EngineError
from i2v_tensorrt.common.pack_paths import PACK
from i2v_tensorrt.engine_builder.backends.inductor import backend as inductor
from i2v_tensorrt.engine_builder.backends.inductor import cpp_compiler
from i2v_tensorrt.engine_builder.backends.inductor.backend import InductorBackend
from i2v_tensorrt.engine_builder.backends.registry import AUTO, choose_backend

from ...helpers.toys import CPU, raising


def test_cxx_comes_first_and_each_compiler_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, link = tmp_path / "own-g++", tmp_path / "g++"
    for path in (own, tmp_path / "c++"):
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    link.symlink_to(own)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", str(own))
    monkeypatch.setattr(cpp_compiler, "SYSTEM", (str(link), "/nonexistent/g++"))
    assert cpp_compiler.compilers() == [str(own), str(tmp_path / "c++")]
    monkeypatch.delenv("CXX")
    assert cpp_compiler.compilers() == [str(link), str(tmp_path / "c++")]


def script(folder: Path, name: str, text: str) -> str:
    """A program that stands for a compiler, or for the proof of one."""
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


PROOF = """
import os, signal, sys
with open(os.path.join(os.path.dirname(sys.argv[0]), "proofs"), "a") as stream: stream.write("done ")
if "crashing" in sys.argv[1]: os.kill(os.getpid(), signal.SIGSEGV)
if "failing" in sys.argv[1]: sys.exit("RuntimeError: no such header.")
"""


@pytest.fixture
def proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Puts compilers of these names in place of the system's; their names say how their proof ends."""
    monkeypatch.setattr(cpp_compiler, "PROOF", Path(script(tmp_path, "proof.py", PROOF)))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "caches"))

    def put(*kinds: str) -> list[str]:
        paths = [script(tmp_path, kind, "#!/bin/sh\n") for kind in kinds]
        monkeypatch.setattr(cpp_compiler, "compilers", lambda: paths)
        return paths

    return put


def test_a_compiler_whose_output_crashes_is_passed_over(proof: Callable[..., list[str]]) -> None:
    paths = proof("crashing-g++", "failing-c++", "good-g++")
    assert cpp_compiler.working_compiler("cpu") == paths[-1]


def test_a_compiler_proves_itself_once_and_another_version_anew(
    proof: Callable[..., list[str]], tmp_path: Path
) -> None:
    (path,) = proof("good-g++")

    def proofs_after_another_process() -> int:
        cpp_compiler._flaw.cache_clear()
        assert cpp_compiler.working_compiler("cpu") == path
        return len((tmp_path / "proofs").read_text().split())

    assert [proofs_after_another_process(), proofs_after_another_process()] == [1, 1]
    script(tmp_path, "good-g++", "#!/bin/sh\necho 13.2\n")
    assert [proofs_after_another_process(), proofs_after_another_process()] == [2, 2]


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError("no locks")])
def test_where_files_cannot_be_locked_a_compiler_proves_itself(
    proof: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    (path,) = proof("good-g++")
    monkeypatch.setattr(filelock.FileLock, "acquire", raising(error))
    assert cpp_compiler.working_compiler("cpu") == path


def test_without_a_working_compiler_each_reason_is_told_with_what_to_install_and_not_kept(
    proof: Callable[..., list[str]], tmp_path: Path
) -> None:
    """What a compiler lacked may be installed by now."""
    proof("crashing-g++", "failing-c++")
    for number in (1, 2):
        cpp_compiler._flaw.cache_clear()
        with pytest.raises(EngineError) as caught:
            cpp_compiler.working_compiler("cpu")
        text = str(caught.value)
        assert "crashing-g++: loading its output ended with signal 11" in text
        assert "failing-c++: RuntimeError: no such header" in text
        assert text.endswith(f"To install one: {cpp_compiler.install_line()}")
        assert len((tmp_path / "proofs").read_text().split()) == 2 * number


def test_no_compiler_at_all_makes_the_backend_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inductor, "compilers", list)
    found = InductorBackend().availability(CPU)
    assert (found.ok, found.reason) == (False, "Inductor needs a C++ compiler, found none.")
    with pytest.raises(BackendUnavailableError, match="To install it: "):
        choose_backend("inductor", CPU)


@pytest.mark.parametrize(
    ("device", "version", "words"),
    [
        ("cuda", torch.__version__, "Inductor needs the package triton on a GPU, which is missing."),
        ("meta", torch.__version__, "Inductor serves cpu and cuda here, found meta."),
        ("cpu", "2.7.1+cpu", "Inductor's engines need PyTorch 2.8 or later, found 2.7.1+cpu."),
    ],
)
def test_what_the_backend_needs_is_named(
    device: str, version: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inductor, "find_spec", lambda name: None)
    monkeypatch.setattr(torch, "__version__", version)
    assert InductorBackend().availability(torch.device(device)).reason == words


def test_auto_takes_inductor_on_gpus_alone() -> None:
    backend = InductorBackend()
    assert backend.availability(CPU).ok
    assert choose_backend(AUTO, CPU).name != "inductor"
    assert backend.is_automatic(torch.device("cuda"))


def test_the_target_names_pytorch_and_the_processor() -> None:
    target = InductorBackend().target(CPU)
    assert (target.backend, target.device, target.exporter) == ("inductor", "cpu", "revision 2")
    assert torch.__version__ in target.backend_version
    assert torch.backends.cpu.get_cpu_capability() in target.arch


IMPORTS = """
import builtins, importlib.util, sys, threading
from pathlib import Path
root = Path(sys.argv[1])
init, places = root / "__init__.py", [str(root)]
spec = importlib.util.spec_from_file_location("i2v_tensorrt", init, submodule_search_locations=places)
sys.modules["i2v_tensorrt"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
import torch
from i2v_tensorrt.engine_builder.backends.inductor import cpp_compiler
class Watch:
    def find_spec(self, name, path=None, target=None):
        if threading.current_thread() is not threading.main_thread() and name.startswith("torch"):
            print(name)
sys.meta_path.insert(0, Watch())
cpp_compiler.compilers = list
print(type(cpp_compiler.proof_begun("cpu").exception()).__name__)
cpp_compiler.compilers = lambda: ["true"]
cpp_compiler._flaw = lambda *_: None
cpp_compiler.proof_begun.cache_clear()
print(cpp_compiler.proof_begun("cpu").result())
"""


def test_the_thread_that_waits_for_the_proof_imports_nothing_of_pytorch(tmp_path: Path) -> None:
    """Two threads that import the compiler's modules at once find them half made: an export failed of it on a GPU."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, str(PACK)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.stdout.split() == ["EngineError", "true"], done.stderr


@pytest.mark.slow
def test_this_machine_has_a_compiler_that_proves_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # where nothing has been proved yet
    assert cpp_compiler.working_compiler("cpu") in cpp_compiler.compilers()


LACKING = {
    "omp.h": 'case "$*" in *-fopenmp*) echo "致命错误：omp.h：没有那个文件或目录" >&2; exit 1;; esac\nexec g++ "$@"\n',
    "No working C++ compiler": 'echo "fatal error: Python.h: No such file or directory" >&2; exit 1\n',
    "No such file or directory": 'exec g++ "$@"\n',
}
"""Compilers without OpenMP, in another language, without Python's headers, and whole behind a name with a space."""


@pytest.mark.torture
@pytest.mark.parametrize("words", LACKING)
def test_a_compiler_that_lacks_something_is_named_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "caches ü"))
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    folder = tmp_path / ("my compilers" if LACKING[words].startswith("exec") else "compilers")
    folder.mkdir()
    path = script(folder, "g++", f"#!/bin/sh\n{LACKING[words]}")
    monkeypatch.setattr(cpp_compiler, "compilers", lambda: [path])
    cpp_compiler._flaw.cache_clear()
    with pytest.raises(EngineError) as caught:
        cpp_compiler.working_compiler("cpu")
    assert path in str(caught.value) and words in str(caught.value)
