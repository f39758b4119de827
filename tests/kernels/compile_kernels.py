"""Compiles every kernel to a binary for compute capability 9.0; prints one name a kernel."""

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from hyperllava_hf.kernels import expert_products

BLOCKS = {"BLOCK_L": 64, "BLOCK_J": 32, "BLOCK_D": 64}


def build(kernel, pointers, constants):
    """Compile one kernel; arguments that are neither pointers nor constants are int32."""
    signature = {
        name: "constexpr" if name in constants else f"*{pointers.get(name)}"
        for name in kernel.arg_names
    }
    signature |= {
        name: "i32" for name in kernel.arg_names if name not in pointers and name not in constants
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    binary = compile(source, target=GPUTarget("cuda", 90, 32))
    assert binary.asm["cubin"]


def main():
    for dtype in ("bf16", "fp16", "fp32"):
        build(expert_products._rows_kernel, {"x": dtype, "w": dtype, "y": "fp32"}, BLOCKS)
        print(f"rows-{dtype}")
        for gated, added in ((True, True), (True, False), (False, False)):
            build(
                expert_products._columns_kernel,
                {"a": "fp32", "w": dtype, "t": dtype, "o": dtype},
                {**BLOCKS, "GATED": gated, "ADDED": added},
            )
            print(f"columns-{dtype}-{gated}-{added}")
        build(expert_products._outer_kernel, {"a": "fp32", "x": dtype, "g": dtype}, BLOCKS)
        print(f"outer-{dtype}")
    pointers = dict.fromkeys(("z", "dh", "dz", "h"), "fp32")
    build(expert_products._swiglu_gradient_kernel, pointers, {"BLOCK": 256})
    print("swiglu-gradient")


if __name__ == "__main__":
    main()
