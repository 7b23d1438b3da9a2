"""What a machine spends: its name, and the most memory that a piece of work takes."""

import importlib
import platform
import re
import sys
from pathlib import Path

import torch

GIB = 2**30


def machine_name(device: str | torch.device) -> str:
    """Name of the GPU, or of the CPU and the number of threads that torch uses.

    Args:
        device: Where models run.

    Returns:
        One line.

    Example:
        >>> machine_name("cpu").endswith(("thread", "threads"))
        True
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*: (.*)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    threads = torch.get_num_threads()
    return f"{named[1] if named else platform.machine()}, {threads} thread{'s' if threads > 1 else ''}"


class PeakMemory:
    """The most memory since this was made, in GiB: of tensors on the GPU, or resident in this process.

    Linux alone begins anew; on a CPU of another system it is the most since the process began.

    Args:
        device: Where models run.

    Example:
        >>> peak = PeakMemory("cpu")
        >>> peak.gib() > 0 or peak.gib() != peak.gib()
        True
    """

    def __init__(self, device: str | torch.device):
        self.device = torch.device(device)
        self.since_now = True
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak is from now on
        except OSError:
            self.since_now = False

    def gib(self) -> float:
        """The peak so far.

        Returns:
            GiB; nan on a CPU where nothing can tell: on Windows without psutil.
        """
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / GIB
        if not self.since_now:
            return _peak_of_process() / GIB
        return int(re.search(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)[1]) / 2**20


def _peak_of_process() -> float:
    """Bytes; nan where nothing tells."""
    try:
        usage = importlib.import_module("resource")  # Unix
    except ImportError:
        try:
            return float(importlib.import_module("psutil").Process().memory_info().peak_wset)
        except ImportError:
            return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024
    return float(usage.getrusage(usage.RUSAGE_SELF).ru_maxrss * unit)
