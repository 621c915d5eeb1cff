"""An ONNX file's picture network as PyTorch calls it: run by ONNX Runtime on the CPU, as every engine's reference."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...common.errors import EngineError
from . import contract as contracts
from . import graph
from .contract import Contract, contract_from_dict
from .graph import read_model, with_dims

if TYPE_CHECKING:
    from onnx import ModelProto


class OnnxPicture(nn.Module):
    """The network. It has no parameters of PyTorch's; inputs may lie on any device, where the result goes too."""

    def __init__(self, model: ModelProto, contract: Contract) -> None:
        super().__init__()
        self.contract, self._model, self._session = contract, model, None

    def onnx_model(self) -> ModelProto:
        """The graph with the sizes that trials found, and the one output that is meant."""
        more = {each.name: self.contract.more_dims(each) for each in self.contract.more}
        dims = {
            self.contract.picture: self.contract.picture_dims,
            self.contract.output: self.contract.output_dims,
            **more,
        }
        return with_dims(self._model, dims, (self.contract.output,))

    def forward(self, **inputs: Tensor) -> Tensor:
        """Tensors by the file's names -> the output, in the file's own dtypes and layouts."""
        device = next(iter(inputs.values())).device
        feeds = {name: tensor.cpu().numpy() for name, tensor in inputs.items()}
        try:
            (found,) = self._opened().run([self.contract.output], feeds)
        except EngineError:
            raise
        except Exception as error:  # onnxruntime's own exceptions share no public base
            reason = " ".join(str(error).split())[:300].rstrip(".")
            raise EngineError(f"ONNX Runtime cannot run the network: {reason}.") from error
        return torch.from_numpy(found).to(device)

    def _opened(self) -> Any:
        if self._session is None:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            content = self.onnx_model().SerializeToString()
            self._session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
        return self._session


def load_network(path: str, sha256: str, contract: str) -> nn.Module:
    """The network of a file of that digest, with its contract as JSON; raises EngineError for a changed one."""
    found = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    if found != sha256:
        raise EngineError(f"Expected the ONNX file that was looked at, found {Path(path).name} changed since.")
    return OnnxPicture(read_model(Path(path)), contract_from_dict(json.loads(contract)))


def code() -> str:
    """Digest of the code that an engine's graph depends on."""
    files = [Path(str(module.__file__)) for module in (contracts, graph)] + [Path(__file__)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
