"""Exported files, opened in the runtime that is for them: ONNX Runtime or OpenVINO."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from ..errors import UserError, reason
from .metadata import KEY

Precision = Literal['float32', 'bfloat16']


class Runtime(Protocol):
    """A model in a file, ready to run.

    Attributes:
        text: What the file says of itself, see :class:`cvt_dense.apis.metadata.Metadata`; None if it does not.
    """

    text: str | None

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs by name for ``(N, C, H, W)`` float32 images; raises whatever the runtime raises."""


class OnnxRuntime:
    """A file for ONNX Runtime, see :func:`open_file`."""

    packages = ('onnxruntime',)

    def __init__(self, path: Path, device: str | None, precision: Precision, threads: int) -> None:
        import onnxruntime

        if precision != 'float32':
            raise UserError(f'{path} is run in float32: only OpenVINO (.xml) has --precision {precision}')
        name, _, number = (device or '').partition(':')
        name = name or ('cuda' if 'CUDAExecutionProvider' in onnxruntime.get_available_providers() else 'cpu')
        provider = f'{name.upper()}ExecutionProvider'
        if provider not in onnxruntime.get_available_providers():
            raise UserError(f'--device {device} cannot be used by the onnxruntime that is installed, --device cpu can')
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors are raised, and warnings are about the graph
        providers = [(provider, {'device_id': number})] if number else [provider]
        self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        self._names = [output.name for output in self._session.get_outputs()]
        self.text: str | None = self._session.get_modelmeta().custom_metadata_map.get(KEY)

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """See :class:`Runtime`."""
        return dict(zip(self._names, self._session.run(None, {'images': images})))


class OpenVino:
    """A file for OpenVINO, see :func:`open_file`."""

    packages = ('openvino',)

    def __init__(self, path: Path, device: str | None, precision: Precision, threads: int) -> None:
        import openvino

        model = openvino.Core().read_model(path)
        self.text: str | None = model.get_rt_info([KEY]).astype(str) if model.has_rt_info([KEY]) else None
        # Where a CPU has bfloat16, it would be taken by default.
        settings: dict[str, Any] = {'INFERENCE_PRECISION_HINT': 'bf16' if precision == 'bfloat16' else 'f32'}
        if threads:
            settings['INFERENCE_NUM_THREADS'] = threads
        try:
            self._compiled = openvino.compile_model(model, (device or 'cpu').upper(), settings)
        except RuntimeError as error:
            raise UserError(
                f'--device {device or "cpu"} cannot be used by OpenVINO, --device cpu always can: {reason(error)}'
            ) from error
        if precision == 'bfloat16' and 'bfloat16' not in str(self._compiled.get_property('INFERENCE_PRECISION_HINT')):
            raise UserError('--precision bfloat16: this CPU has no bfloat16; leave it out')
        self._names = [output.any_name for output in self._compiled.outputs]

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """See :class:`Runtime`."""
        outputs = self._compiled(images)
        return {name: np.array(outputs[index]) for index, name in enumerate(self._names)}  # the next run reuses them


RUNTIMES: dict[str, type[OnnxRuntime | OpenVino]] = {'.onnx': OnnxRuntime, '.xml': OpenVino}


def open_file(path: Path, device: str | None = None, precision: Precision = 'float32', threads: int = 0) -> Runtime:
    """Open an exported file.

    Args:
        path: An ``.onnx`` or ``.xml`` file.
        device: ``cpu``, ``cuda``, ``cuda:1`` (ONNX Runtime), ``gpu`` (OpenVINO); by default ONNX Runtime takes a GPU
            if it can, and OpenVINO the CPU.
        precision: That is computed in; bfloat16 is for OpenVINO on CPUs that have it.
        threads: On a CPU; 0 leaves it to the runtime.

    Raises:
        UserError: If there is no such file, it cannot be read, its runtime is not installed, or cannot use the device.
    """
    if path.suffix not in RUNTIMES:
        raise UserError(f'{path}: exported files that can be run end in {" or ".join(RUNTIMES)}')
    if not path.is_file():
        raise UserError(f'{path} does not exist')
    runtime = RUNTIMES[path.suffix]
    missing = [name for name in runtime.packages if find_spec(name) is None]
    if missing:
        raise UserError(f'a {path.suffix} file needs packages that are not installed: pip install {" ".join(missing)}')
    try:
        return runtime(path, device, precision, threads)
    except UserError:
        raise
    except Exception as error:  # each runtime raises its own
        raise UserError(f'{path} cannot be read as a model: {type(error).__name__}: {reason(error)}') from error
