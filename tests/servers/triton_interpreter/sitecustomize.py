"""On a server's PYTHONPATH: Triton's kernels are run by Triton's interpreter, in place of a compiler for CPUs.

vLLM's second model runner wants such a compiler to be there; it asks for a backend called "cpu" with a driver.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"

from triton.backends import backends

_any = next(iter(backends.values()))


class _Driver:
    @classmethod
    def is_active(cls):
        return True


backends["cpu"] = type(_any)(compiler=_any.compiler, driver=_Driver)
