"""A step's kernels, recorded once on a GPU and replayed: launching them one by one takes longer than they do.

Customising learns from four pictures at a time: thousands of kernels of a few microseconds each, whose shapes never
change. PyTorch can record them as one CUDA graph, which the GPU then runs by itself.
"""

from collections.abc import Callable

import torch

WARM_UP = 3  # calls before the recording: libraries choose their kernels, and lazy state comes into being


class Replayed:
    """A function of tensors that is run a few times, then recorded, and from then on replayed.

    The function must do the same with tensors of the same shapes at every call: nothing in it may depend on a number
    that Python reads, draw random numbers, or wait for the GPU. What it writes beside its result (gradients, say) it
    must make anew in each call, so that the recording holds the place they are written to.

    Args:
        function: Takes tensors by name, returns one tensor.

    Example:
        >>> double = Replayed(lambda number: 2 * number)  # doctest: +SKIP
        >>> double(number=torch.ones(1, device="cuda"))  # doctest: +SKIP
        tensor([2.], device='cuda:0')
    """

    def __init__(self, function: Callable[..., torch.Tensor]):
        self.function, self.calls = function, 0
        self.graph, self.stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        self.tensors, self.result = {}, None

    def __call__(self, **tensors: torch.Tensor) -> torch.Tensor:
        """Call the function, record it, or replay the recording.

        Args:
            **tensors: On the GPU, of the same shapes and types at every call.

        Returns:
            The function's result.
        """
        self.calls += 1
        if self.calls <= WARM_UP:  # on the stream of the recording, where autograd then finds its own
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                result = self.function(**tensors)
            torch.cuda.current_stream().wait_stream(self.stream)
            return result
        if self.calls == WARM_UP + 1:
            self.tensors = {name: tensor.clone() for name, tensor in tensors.items()}
            # Only what this thread does is held to the rules: another may be putting the next batch into pinned memory.
            with torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local"):
                self.result = self.function(**self.tensors)
        for name, tensor in tensors.items():
            self.tensors[name].copy_(tensor, non_blocking=True)
        self.graph.replay()
        return self.result.clone()  # the next replay overwrites it
