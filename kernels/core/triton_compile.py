"""Resources of Triton kernels, compiled for GPUs that are not present.

    launches(call) -> list[Launch]            the Triton launches of a call, recorded instead of run
    distinct(launches) -> list[Launch]        one launch for each different machine code
    compiled(launch, target) -> Cost          resources of the machine code (cubin or hsaco) for one of TARGETS
    costs(spec) -> list[Cost]                 of every distinct launch of `spec`, FILE.py:FUNCTION, on every target

The function of `spec` takes no argument and calls launchers on tensors of real sizes. torch.empty on the CPU will do: only
shapes, types and alignment count. Triton cannot compile in a process that runs its interpreter; then `costs` starts another
process.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foredraft.kernels.core.backend import is_interpreted

TARGETS = {"sm_80": ("cuda", 80, 32), "sm_90": ("cuda", 90, 32), "gfx942": ("hip", "gfx942", 64)}
_TYPES = {"float32": "fp32", "float64": "fp64", "float16": "fp16", "bfloat16": "bf16", "bool": "i1", "uint8": "u8",
          "int8": "i8", "int16": "i16", "int32": "i32", "int64": "i64"}
_OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg", "enable_fp_fusion")


@dataclass(frozen=True)
class Launch:
    """One launch of a triton JITFunction.

    signature, constants, attributes: type, constant value and divisibility by 16 of arguments; options: num_warps etc.
    """

    kernel: Any
    grid: tuple[int, ...]
    signature: dict[str, str]
    constants: dict[str, Any]
    attributes: dict[tuple[int], list]
    options: dict[str, Any]


@dataclass(frozen=True)
class Cost:
    """registers of a thread (vector registers on AMD); shared memory, spills (stack of a thread) and code in bytes."""

    kernel: str
    target: str
    registers: int
    shared: int
    spills: int
    code: int
    warps: int


def launches(call: Callable[[], Any]) -> list[Launch]:
    """The Triton launches of a call. Needs triton without its interpreter; needs no GPU."""
    from triton.runtime.jit import JITFunction

    recorded = []

    def record(kernel, *args, grid, warmup, **kwargs):
        recorded.append(_launch(kernel, grid, args, kwargs))

    run, JITFunction.run = JITFunction.run, record
    try:
        call()
    finally:
        JITFunction.run = run
    return recorded


def distinct(found: Sequence[Launch]) -> list[Launch]:
    """The first of all launches that differ in their grid only."""
    known = {}
    for launch in found:
        key = (launch.kernel.__name__, *map(repr, (launch.signature, launch.constants, launch.attributes, launch.options)))
        known.setdefault(key, launch)
    return list(known.values())


def _launch(kernel: Any, grid: tuple[int, ...], args: Sequence[Any], kwargs: dict[str, Any]) -> Launch:
    values = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        name = parameter.name
        value = values.get(name, parameter.default)
        # triton specialises a launch: 1 and None become constants, multiples of 16 are marked as such
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            signature[name], constants[name] = "constexpr", value
            continue
        number = None
        if hasattr(value, "data_ptr"):
            signature[name], number = "*" + _TYPES[str(value.dtype).removeprefix("torch.")], value.data_ptr()
        elif isinstance(value, bool):
            signature[name] = "i1"
        elif isinstance(value, int):
            signature[name], number = "i32" if -(2**31) <= value < 2**31 else "i64", value
        else:
            signature[name] = "fp32"
        if number is not None and number % 16 == 0:
            attributes[(index,)] = [["tt.divisibility", 16]]
    options = {name: kwargs[name] for name in _OPTIONS if name in kwargs}
    return Launch(kernel, tuple(grid), signature, constants, attributes, options)


def compiled(launch: Launch, target: str) -> Cost:
    """Compile for one of TARGETS."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(launch.kernel, launch.signature, launch.constants, launch.attributes)
    # the default of this option differs between versions
    code = triton.compile(source, target=GPUTarget(*TARGETS[target]), options={"enable_fp_fusion": True} | launch.options)
    if "cubin" in code.asm:
        registers, spills = _cubin_use(code.asm["cubin"])
        binary = code.asm["cubin"]
    else:
        text, binary = code.asm["amdgcn"], code.asm["hsaco"]
        registers = _number(r"\.vgpr_count:\s+(\d+)", text)
        spills = _number(r"\.private_segment_fixed_size:\s+(\d+)", text)
    return Cost(launch.kernel.__name__, target, registers, code.metadata.shared, spills, len(binary),
                code.metadata.num_warps)


def _cubin_use(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes of a thread, read by the cuobjdump in triton's wheel."""
    import triton.backends.nvidia

    tool = Path(triton.backends.nvidia.__path__[0]) / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True).stdout
    return _number(r"REG:(\d+)", text), _number(r"STACK:(\d+)", text) + _number(r"LOCAL:(\d+)", text)


def _number(pattern: str, text: str) -> int:
    return int(re.findall(pattern, text)[-1])


def costs(spec: str, targets: Sequence[str] = tuple(TARGETS)) -> list[Cost]:
    """Resources of every distinct launch of `spec`, FILE.py:FUNCTION."""
    if not is_interpreted():
        return [compiled(launch, target) for launch in distinct(launches(_function(spec)))
                for target in targets]
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "foredraft.kernels.core.triton_compile", spec, *targets]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{spec} does not compile:\n{done.stderr[-3000:]}")
    return [Cost(**cost) for cost in json.loads(done.stdout.splitlines()[-1])]


def _function(spec: str) -> Callable[[], Any]:
    path, _, name = spec.rpartition(":")
    module_spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return getattr(module, name)


def table(rows: Sequence[Cost]) -> str:
    """A text table, one line for each kernel and target."""
    lines = [f"{'kernel':32} {'target':8} {'registers':>9} {'shared':>7} {'spills':>6} {'code':>7}"]
    for row in rows:
        lines.append(f"{row.kernel:32} {row.target:8} {row.registers:9} {row.shared:7} {row.spills:6} {row.code:7}")
    return "\n".join(lines)


if __name__ == "__main__":
    found = costs(sys.argv[1], sys.argv[2:] or tuple(TARGETS))
    print(table(found))
    print(json.dumps([asdict(cost) for cost in found]))
