"""Compiles every kernel to a binary for compute capability 9.0; prints one name a kernel.

Says first whether the switch alone had loaded a kernel.
"""

import sys

import hyperllava_hf.kernels as switch

BLOCKS = {"BLOCK_L": 64, "BLOCK_J": 32, "BLOCK_D": 64}


def build(kernel, pointers, constants):
    """Compile one kernel; arguments that are neither pointers nor constants are int32."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    def describe(name):
        if name in constants:
            return "constexpr"
        return f"*{pointers[name]}" if name in pointers else "i32"

    signature = {name: describe(name) for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    assert compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]


def main():
    print(f"{switch.__name__}.expert_products" in sys.modules)
    from hyperllava_hf.kernels import expert_products

    for dtype in ("bf16", "fp32"):
        for tailed in (False, True):
            pointers = {"x": dtype, "w": dtype, "tail": dtype, "y": "fp32"}
            build(expert_products._rows_kernel, pointers, {**BLOCKS, "TAILED": tailed})
            print(f"rows-{dtype}-{tailed}")
        ways = ((True, True, False), (True, False, False), (False, False, False))
        for gated, added, tailed in (*ways, (False, True, True), (False, False, True)):
            pointers = {"a": "fp32", "w": dtype, "tail": dtype, "t": dtype, "o": dtype}
            constants = {**BLOCKS, "GATED": gated, "ADDED": added, "TAILED": tailed}
            build(expert_products._columns_kernel, pointers, constants)
            print(f"columns-{dtype}-{gated}-{added}-{tailed}")
        pointers = {"y": "fp32", "c": dtype, "a": "fp32"}
        build(expert_products._mix_kernel, pointers, {"BLOCK_M": 64, "BLOCK_R": 16})
        print(f"mix-{dtype}")
        build(expert_products._outer_kernel, {"a": "fp32", "x": dtype, "g": dtype}, BLOCKS)
        print(f"outer-{dtype}")
    pointers = dict.fromkeys(("z", "dh", "dz", "h"), "fp32")
    build(expert_products._swiglu_gradient_kernel, pointers, {"BLOCK": 256})
    print("swiglu-gradient")


if __name__ == "__main__":
    main()
