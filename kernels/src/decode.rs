//! Blocks to f32 at a level's speed, with the bits of each format's own `decode`.
//!
//! Every product of a 16-bit scale, an integer scale and a quant is exact in f32, so only the last addition rounds, and
//! the order of the factors does not matter.

use crate::quant::Blocked;

levels! {
    {
        fn floats(chunk: simd::Bytes, i: usize) -> simd::Floats {
            let bytes: [i8; 32] = bytemuck::must_cast(chunk);
            let (eights, _) = bytes.as_chunks::<8>();
            simd::load_i8(&eights[i])
        }

        /// Blocks of 32: `d·(q − offset)` or `d·q + m`.
        fn blocks[F: Blocked, C: Fn(&F::Block) -> simd::Bytes](w: &[u8], out: &mut [f32], chunk: C) {
            let (out, _) = out.as_chunks_mut::<8>();
            let (out, _) = out.as_chunks_mut::<4>();
            for (block, out) in bytemuck::cast_slice::<u8, F::Block>(w).iter().zip(out) {
                let d = simd::splat(crate::half::f16_to_f32(F::d(block)));
                let q = chunk(block);
                for i in 0..4 {
                    let v = simd::sub(floats(q, i), simd::splat(F::OFFSET as f32));
                    let v = simd::mul(v, d);
                    let v = if F::MIN {
                        simd::add(v, simd::splat(crate::half::f16_to_f32(F::m(block))))
                    } else {
                        v
                    };
                    simd::store(&mut out[i], v);
                }
            }
        }

        /// Super-blocks: `(d·s)·(q − offset)` or `(d·s)·q − m·b`.
        fn supers[F: Blocked, C: Fn(&F::Block, usize) -> simd::Bytes,
                  S: Fn(&F::Block) -> (simd::Words, simd::Words)](w: &[u8], out: &mut [f32], chunk: C, scales: S) {
            let (out, _) = out.as_chunks_mut::<8>();
            let (out, _) = out.as_chunks_mut::<32>();
            for (block, out) in bytemuck::cast_slice::<u8, F::Block>(w).iter().zip(out) {
                let (s, b) = scales(block);
                let (s, b): ([i16; 16], [i16; 16]) = (bytemuck::must_cast(s), bytemuck::must_cast(b));
                let d = crate::half::f16_to_f32(F::d(block));
                let m = crate::half::f16_to_f32(F::m(block));
                for j in 0..8 {
                    let q = chunk(block, j);
                    for i in 0..4 {
                        let sub = 2 * j + i / 2;
                        let v = simd::sub(floats(q, i), simd::splat(F::OFFSET as f32));
                        let v = simd::mul(v, simd::splat(d * f32::from(s[sub])));
                        let v = if F::MIN { simd::sub(v, simd::splat(m * f32::from(b[sub]))) } else { v };
                        simd::store(&mut out[4 * j + i], v);
                    }
                }
            }
        }
    }

    /// Asks for bytes that will be decoded soon.
    pub fn ask(bytes: &[u8]) {
        for line in bytes.chunks(64) {
            simd::prefetch(line.as_ptr());
        }
        if let Some(last) = bytes.last() {
            simd::prefetch(last);
        }
    }
}
