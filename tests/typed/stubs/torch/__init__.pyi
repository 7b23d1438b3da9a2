# Of torch only what stands around our own signatures: reading all of it takes a type checker minutes.
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

class no_grad:
    def __call__(self, function: Function) -> Function: ...

def __getattr__(name: str) -> Any: ...
