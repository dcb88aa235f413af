"""Resources of Triton kernels, compiled for GPUs that are not present.

    launches(call, target) -> list[Launch]    the Triton launches of a call on one of TARGETS, recorded instead of run
    distinct(launches) -> list[Launch]        one launch for each different machine code
    compiled(launch, target) -> Cost          resources of the machine code (cubin or hsaco) for one of TARGETS
    lowered(launch, target) -> Lowered        the layouts of its sums, from Triton's GPU dialect; much faster than `compiled`
    costs(spec) -> list[Cost]                 of every distinct launch of `spec`, FILE.py:FUNCTION, on every target
    lower(spec, target, triton)               Lowered of every distinct launch, by the triton in a folder

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

from foredraft.kernels.core.backend_triton import is_interpreted

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


@dataclass(frozen=True)
class Lowered:
    """constants: the arguments that are compiled in. sums: each product, reduction and scan but maxima and minima, with the
    number of terms and the layouts of its operands, which fix the order of every sum."""

    kernel: str
    constants: dict[str, Any]
    types: tuple[str, ...]
    sums: tuple[str, ...]


def launches(call: Callable[[], Any], target: str) -> list[Launch]:
    """The Triton launches of a call on one of TARGETS. Needs triton without its interpreter; needs no GPU."""
    import torch
    from triton.runtime.jit import JITFunction

    recorded = []

    def record(kernel, *args, grid, warmup, **kwargs):
        recorded.append(_launch(kernel, grid, args, kwargs))

    # launchers choose some options by it
    hip, torch.version.hip = torch.version.hip, target if TARGETS[target][0] == "hip" else None
    run, JITFunction.run = JITFunction.run, record
    try:
        call()
    finally:
        JITFunction.run, torch.version.hip = run, hip
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
        # unless do_not_specialize names an argument, triton compiles 1 in, as it does None, and treats multiples of 16 apart
        is_special = not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (is_special and type(value) is int and value == 1):
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
        if is_special and not parameter.do_not_specialize_on_alignment and number is not None and number % 16 == 0:
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


def lowered(launch: Launch, target: str) -> Lowered:
    """Lower to Triton's GPU dialect for one of TARGETS."""
    from triton._C.libtriton import ir
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend

    machine = GPUTarget(*TARGETS[target])
    source, backend = ASTSource(launch.kernel, launch.signature, launch.constants, launch.attributes), make_backend(machine)
    options = backend.parse_options({"enable_fp_fusion": True} | launch.options)
    stages: dict[str, Callable] = {}
    backend.add_stages(stages, options, source.language)
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    module = source.make_ir(machine, options, backend.get_codegen_implementation(options), backend.get_module_map(), context)
    for name in ("ttir", "ttgir"):
        module = stages[name](module, {"target": machine, **vars(options)})
    return Lowered(launch.kernel.__name__, launch.constants, tuple(launch.signature.values()),
                   tuple(_sums(str(module))))


def _sums(text: str) -> list[str]:
    layouts, found = dict(re.findall(r"^(#\w+) = (.*)$", text, re.MULTILINE)), []
    for reduction, axis, body, operands, product, factors in re.findall(
            r'"tt\.(reduce|scan)"\(.*?axis = (\d+)(.*?)\}\) : \((.*?)\) ->|\b(\w+\.\w*dot) %.*? : (.*?) loc\(', text,
            re.DOTALL):
        if re.search(r"arith\.(max|min)", body):
            continue
        types = operands or factors
        # a product sums over the last axis of its first factor
        size = re.search(r"tensor<((?:\d+x)+)", types)[1].split("x")[:-1][int(axis or -1)]
        types = re.sub(r"#\w+", lambda name: layouts.get(name[0], name[0]), re.sub(r"tensor<(?:\d+x)+", "tensor<", types))
        found.append(f"{reduction or product} of {size}: {types}")
    return found


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
        recorded = [distinct(launches(_function(spec), target)) for target in targets]
        return [compiled(launch, target) for each in zip(*recorded, strict=True)
                for launch, target in zip(each, targets, strict=True)]
    return [Cost(**cost) for cost in _elsewhere(["costs", spec, *targets])]


def lower(spec: str, target: str, triton: Path | None = None) -> list[Lowered]:
    """Lowered of every distinct launch of `spec` for a target; `triton`: a folder that holds another version of it."""
    return [Lowered(each["kernel"], each["constants"], tuple(each["types"]), tuple(each["sums"]))
            for each in _elsewhere(["lower", spec, target], triton)]


def _elsewhere(arguments: Sequence[str], triton: Path | None = None) -> list[dict]:
    """What a process of this file prints, in which triton compiles."""
    path = [*([] if triton is None else [str(triton)]), *filter(None, sys.path)]
    done = subprocess.run([sys.executable, "-m", "foredraft.kernels.core.triton_compile", *arguments], capture_output=True,
                          text=True, env=os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(path)})
    if done.returncode:
        raise RuntimeError(f"{arguments[1]} does not compile:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


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
    verb, spec, *targets = sys.argv[1:]
    if verb == "lower":
        rows = [lowered(launch, targets[0]) for launch in distinct(launches(_function(spec), targets[0]))]
    else:
        rows = costs(spec, targets)
    print(json.dumps([asdict(row) for row in rows], default=str))
