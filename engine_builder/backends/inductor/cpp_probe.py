"""Proves a C++ compiler: compiles two layers with it and runs the result, in a process of its own.

Run as a script with the compiler's path, a device and a folder to work in; a compiler whose output PyTorch
cannot load ends this process, not the one that asked.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any


def main(compiler: str, device: str, folder: str) -> None:
    """Raises the error of any failure; ends silently on success."""
    import torch

    # The activation becomes a kernel of the compiler's own, which on a GPU needs Python's headers too.
    layer = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.SiLU()).to(device).requires_grad_(False)
    x = torch.ones(4, 8, device=device)
    configs: dict[str, Any] = {"cpp.cxx": compiler, "force_disable_caches": True}
    if x.is_cuda:  # the CPU's vector instructions play no part, and trying them out takes longer than all the rest
        instructions: Any = import_module("torch._inductor.cpu_vec_isa")
        instructions.valid_vec_isa_list = list
    path = torch._inductor.aoti_compile_and_package(
        torch.export.export(layer, (x,)), package_path=str(Path(folder) / "proof.pt2"), inductor_configs=configs
    )
    # aoti_load_package would first try out these instructions, which takes longer than all the rest.
    loader: Any = import_module("torch._C._aoti").AOTIModelPackageLoader
    package = loader(path, "model", True, 1, (x.device.index or 0) if x.is_cuda else -1)
    (found,) = package.run([x])
    torch.testing.assert_close(found, layer(x), rtol=1e-2, atol=1e-2)


if __name__ == "__main__":
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
    main(*sys.argv[1:])
