"""Steps of bitsandbytes' 8-bit AdamW (block-wise dynamic quantization, arXiv 2110.02861), for the optimiser's test.

    python make_adam8.py VECTORS

Writes VECTORS/adam8.safetensors, three steps over 4096 + 77 numbers (16 blocks of 256 and a short one):

    signed, unsigned       f32 [256]      the quantization maps of the first and the second moment
    p.0 … p.3              f32 [4173]     the numbers before the first step and after each
    g.1 … g.3              f32 [4173]     the gradient of each step; whole blocks and single numbers are 0
    m.T, v.T               u8 [4173]      codes of the moments after step T
    m.absmax.T, v.absmax.T f32 [17]       what each block's codes are multiplied with
    settings               f32 [5]        rate, beta1, beta2, epsilon, weight decay

The step is bitsandbytes' own on the CPU (bitsandbytes.optim.AdamW8bit). Its C code for f32 finds codes by a table that is too
coarse near 0 (0 itself becomes 1.6e-5 of the largest number, in the second moment); its CUDA kernels and its generic CPU path take
the nearest code, as the paper does. So the codes come from the generic path, which it takes for f64.
Versions: Python 3.11, torch 2.15.0, bitsandbytes 0.50.2, safetensors 0.8.0, numpy 2.4.6.
"""

import sys
from pathlib import Path

import bitsandbytes
import bitsandbytes.backends.cpu.ops
import torch
from safetensors.torch import save_file

RATE, BETAS, EPSILON, DECAY = 1e-3, (0.9, 0.999), 1e-8, 0.01
N, STEPS = 4096 + 77, 3


def nearest(numbers, code, absmax, out, blocksize):
    codes, most = torch.ops.bitsandbytes.quantize_blockwise(numbers.double(), code, blocksize)
    out.copy_(codes)
    absmax.copy_(most)


def main(folder):
    bitsandbytes.backends.cpu.ops._quant_blockwise_fp32_direct = nearest
    draw = torch.Generator().manual_seed(8)
    p = torch.nn.Parameter(torch.randn(N, generator=draw) * 0.1)
    optimiser = bitsandbytes.optim.AdamW8bit([p], lr=RATE, betas=BETAS, eps=EPSILON, weight_decay=DECAY)
    maps = bitsandbytes.functional.create_dynamic_map
    out = {"signed": maps(True), "unsigned": maps(False), "p.0": p.detach().clone(),
           "settings": torch.tensor([RATE, *BETAS, EPSILON, DECAY])}
    for t in range(1, STEPS + 1):
        # gradients over many orders of magnitude, as those of a layer are
        g = torch.randn(N, generator=draw) * 10 ** (torch.rand(N, generator=draw) * 6 - 7)
        g[512:768] = 0
        g[::97] = 0
        p.grad = g
        optimiser.step()
        state = optimiser.state[p]
        assert state["state1"].dtype == torch.uint8
        out |= {f"g.{t}": g.clone(), f"p.{t}": p.detach().clone(),
                f"m.{t}": state["state1"].clone(), f"v.{t}": state["state2"].clone(),
                f"m.absmax.{t}": state["absmax1"].clone(), f"v.absmax.{t}": state["absmax2"].clone()}
    save_file(out, Path(folder) / "adam8.safetensors")


if __name__ == "__main__":
    main(sys.argv[1])
