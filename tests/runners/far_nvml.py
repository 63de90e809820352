"""A stand-in for `pynvml` in a folder of another machine's `sys.path`, and what it was asked."""

_PROGRAM = """
import os, time
from types import SimpleNamespace

{how}
NVML_SUCCESS, NVML_FI_DEV_GET_GPU_RECOVERY_ACTION = 0, 230

class NVMLError(Exception):
    pass

def nvmlInit():
    with open({asked!r}, "a") as log:
        log.write(f"{{os.environ.get('CUDA_VISIBLE_DEVICES')}}\\n")
    time.sleep({seconds})

def nvmlDeviceGetHandleByIndex(number):
    return number

nvmlDeviceGetHandleByUUID = nvmlDeviceGetHandleByIndex

def nvmlDeviceGetFieldValues(handle, fields):
    return [SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(uiVal={action}))]

def nvmlShutdown():
    pass
"""


class FarNvml:
    """What NVML says there: the device needs `action`, after so many seconds."""

    def __init__(self, folder, action=0, *, seconds=0, how=""):
        self.path = str(folder)
        self._asked = folder / "asked"
        program = _PROGRAM.format(how=how, asked=str(self._asked), seconds=seconds, action=action)
        (folder / "pynvml.py").write_text(program)

    @property
    def asked(self):
        """The devices that were visible at each question."""
        return self._asked.read_text().splitlines() if self._asked.exists() else []
