"""Our kernels through Triton's compiler for GPUs that need not be there, in a process that does not interpret them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton comes with this torch")

SCRIPT = """
import re, subprocess, sys, tempfile
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from densekit.ops.cuda import random_keys_kernels, roi_align_kernels, suppression_kernels

capability, dtype = int(sys.argv[1]), sys.argv[2]
four, size = 4, {"bf16": 2, "fp16": 2, "fp32": 4}[dtype]
ints, maps = ("i32",) * four, (f"*{dtype}",) * four
levels = {"maps": maps, "heights": ints, "widths": ints, "scales": ("fp32",) * four}
levels |= {"boxes": "*fp32", "channels": "i32"}
bins = {"SIZE": 7, "SAMPLES": 2, "ALIGNED": False, "BINS": 64, "BLOCK": 128 // size}
runs = {"words": "*i64", "firsts": ints, "lengths": ints, "count": "i32", "total": "i32"}
kernels = [
    (roi_align_kernels._pool, levels | {"images": "*i64", "levels": "*i64", "pooled": f"*{dtype}"}, bins),
    (
        roi_align_kernels._gradients,
        levels | {"first_tiles": ints, "order": "*i64", "starts": "*i32", "gradient": f"*{dtype}"},
        bins | {"TILE": 8, "CHUNK": 32},
    ),
    (
        suppression_kernels._hits,
        runs | {"boxes": "*fp32", "groups": "*i64", "threshold": "fp32"},
        {"GROUPED": True, "BITS": 64},
    ),
    (
        suppression_kernels._walk,
        runs | {"valid": "*u8", "kept": "*u8"},
        {"BITS": 64, "WIDTH": 32, "ROWS": 64},
    ),
    (
        random_keys_kernels._random_keys,
        {"seeds": "*i64", "keys": "*i64", "count": "i32", "stream": "i64"},
        {"BLOCK": 1024},
    ),
]
(cuobjdump,) = Path(triton.__file__).parent.glob("backends/nvidia/bin/cuobjdump")
for kernel, types, constants in kernels:
    names = kernel.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    pointers = [(names.index(n), i) for n in ("maps",) if n in types for i in range(four)]
    pointers += [(names.index(n),) for n, t in types.items() if isinstance(t, str) and (t[0] == "*" or n == "channels")]
    aligned = {place: [["tt.divisibility", 16]] for place in pointers}
    places = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places, attrs=aligned)
    options = {"num_warps": 4, "enable_fp_fusion": kernel is not suppression_kernels._hits}
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        used = subprocess.run([cuobjdump, "--dump-resource-usage", file.name], capture_output=True, text=True).stdout
    stack = re.search(r"STACK:(\\d+)", used)
    print(kernel.__name__, stack[1], built.asm["ptx"].count(".v4.b32"))
"""


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("capability", ["80", "90"])
def test_kernels_compile_spill_no_register_and_move_16_bytes_at_once(capability, dtype, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "error", "-c", SCRIPT, capability, dtype]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    stack = {name: int(stack) for name, stack, _ in (line.split() for line in done.stdout.splitlines())}
    vectors = {name: int(count) for name, _, count in (line.split() for line in done.stdout.splitlines())}
    assert stack == {"_pool": 0, "_gradients": 0, "_hits": 0, "_walk": 0, "_random_keys": 0}
    assert vectors["_pool"] >= 64
    assert vectors["_gradients"] >= 8
