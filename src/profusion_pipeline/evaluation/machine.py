"""What a machine spends: its name, and the most memory that a piece of work takes."""

import platform
import re
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

    Args:
        device: Where models run.

    Example:
        >>> peak = PeakMemory("cpu")
        >>> peak.gib() > 0 or peak.gib() != peak.gib()
        True
    """

    def __init__(self, device: str | torch.device):
        self.device = torch.device(device)
        self.known = True
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak is from now on
        except OSError:
            self.known = False

    def gib(self) -> float:
        """The peak so far.

        Returns:
            GiB; nan on a CPU whose system can't tell.
        """
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / GIB
        if not self.known:
            return float("nan")
        return int(re.search(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)[1]) / 2**20
