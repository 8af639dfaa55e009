"""Makes JAX's CPU round like a GPU: `pytest -p like_a_gpu`, or `import like_a_gpu` before anything is compiled.

Two things differ there, and each is done here to what JAX compiles for the CPU from now on, float32 only:

- Products (matrices, convolutions) of default precision round their operands to TF32, 10 bits of mantissa. Products of
  a named precision, as under `jax.default_matmul_precision("highest")`, do not.
- Each program sums in an order of its own: products and sums end in other last bits in two programs of different
  operations, and in the same ones whenever one program is run, or compiled, again. A zero stays exactly zero.

What it cannot show: kernels that are not deterministic (atomic additions, autotuning), and speed.
"""

import contextvars
import functools
import re
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.interpreters import mlir

_program = contextvars.ContextVar("_program", default=0)


def _last_bits(result: Any) -> Any:
    """The array with 0 to 3 units of its last place added, by element and by program."""
    elements = jax.lax.iota("uint32", result.size).reshape(result.shape)
    units = ((elements ^ np.uint32(_program.get())) * np.uint32(2654435761)) >> np.uint32(30)
    return result + result * (units.astype(result.dtype) * np.float32(2**-23))


def _tf32(operand: Any) -> Any:
    return jax.lax.reduce_precision(operand, exponent_bits=8, mantissa_bits=10)


def _rounding(rule: Callable[..., Any]) -> Callable[..., Any]:
    """The lowering rule of a product or sum, with the rounding of this module around it."""
    before = mlir.lower_fun(_tf32, multiple_results=False)
    after = mlir.lower_fun(_last_bits, multiple_results=False)

    @functools.wraps(rule)
    def lower(context: Any, *operands: Any, **parameters: Any) -> Any:
        [out], ins = context.avals_out, context.avals_in
        if any(aval.dtype != np.float32 for aval in (out, *ins)) or not out.size:
            return rule(context, *operands, **parameters)
        if "precision" in parameters and parameters["precision"] in (None, (jax.lax.Precision.DEFAULT,) * 2):
            operands = tuple(
                before(context.replace(avals_in=[aval], avals_out=[aval]), operand)[0]
                for aval, operand in zip(ins, operands, strict=True)
            )
        results = rule(context, *operands, **parameters)
        return after(context.replace(avals_in=[out]), *results)

    return lower


def _register() -> None:
    # Where JAX keeps the rules has no public name (checked with JAX 0.7.2 and 0.10.2; else the import fails).
    from jax._src.interpreters import mlir as internal
    from jax._src.lax import convolution, lax

    shared, of_cpu = internal._lowerings, internal._platform_specific_lowerings["cpu"]
    for primitive in (lax.dot_general_p, convolution.conv_general_dilated_p, lax.reduce_sum_p):
        rule = of_cpu.get(primitive, shared.get(primitive)).rule
        mlir.register_lowering(primitive, _rounding(rule), platform="cpu")

    lower_module = internal.lower_jaxpr_to_module

    @functools.wraps(lower_module)
    def lower_with_its_own_bits(name: str, jaxpr: Any, **arguments: Any) -> Any:
        # The operations, not the addresses of functions that are printed among them.
        text = re.sub(r" at 0x[0-9a-f]+", "", str(jaxpr))
        token = _program.set(zlib.crc32(text.encode()))
        try:
            return lower_module(name, jaxpr, **arguments)
        finally:
            _program.reset(token)

    internal.lower_jaxpr_to_module = lower_with_its_own_bits


_register()
