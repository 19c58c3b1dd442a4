"""Writes reference.gguf, which tests/reference_gguf.rs reads: a tiny file of every metadata type.

Made with Python 3.11.7, gguf 0.19.0, numpy 2.4.6:  python reference_gguf.py reference.gguf
"""

import sys

import numpy as np
from gguf import GGMLQuantizationType as T, GGUFValueType as V, GGUFWriter, quants

w = GGUFWriter(sys.argv[1], "reference")
w.add_custom_alignment(64)
w.add_uint8("scalar.u8", 200)
w.add_int8("scalar.i8", -100)
w.add_uint16("scalar.u16", 60_000)
w.add_int16("scalar.i16", -30_000)
w.add_uint32("scalar.u32", 4_000_000_000)
w.add_int32("scalar.i32", -2_000_000_000)
w.add_uint64("scalar.u64", 2**64 - 1)
w.add_int64("scalar.i64", -(2**63))
w.add_float32("scalar.f32", 0.1)
w.add_float64("scalar.f64", 0.1)
w.add_bool("scalar.true", True)
w.add_bool("scalar.false", False)
w.add_string("scalar.text", "Grüße, 世界")
w.add_key_value("array.u8", bytes(range(5)), V.ARRAY, V.UINT8)
w.add_array("array.i32", [1, -2, 3])
w.add_array("array.f32", [0.5, -1.5])
w.add_array("array.bool", [True, False, True])
w.add_array("array.text", ["<s>", "", "▁the", "é"])
w.add_key_value("array.arrays", [[1, 2], [3]], V.ARRAY)

n = np.arange(256, dtype=np.float32)
w.add_tensor("dense.f32", (n[:12] / 8 - 0.5).reshape(2, 6))
w.add_tensor("dense.f16", (n[:6] / 4 - 0.5).astype(np.float16).reshape(1, 2, 3))
blocks = (n[:192] / 32 - 3).reshape(3, 64)
w.add_tensor("blocks.q8_0", quants.quantize(blocks, T.Q8_0), raw_dtype=T.Q8_0)
w.add_tensor("dense.bf16", quants.quantize(n[:4].reshape(1, 4), T.BF16), raw_dtype=T.BF16)
w.add_tensor("one", n[7:8])

w.write_header_to_file()
w.write_kv_data_to_file()
w.write_tensors_to_file()
w.close()
