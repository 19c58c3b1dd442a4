//! Rows of block-quantized weights times many rows of activations: prompts, batches, training.
//!
//! `lanes` rows of weights (one or two registers' worth) are laid once into a *panel*, interleaved so that one register
//! holds four consecutive quants of each of `LANES` rows; then every group of `COLUMNS` packed rows of activations runs down it. The numbers and their
//! order are those of [`crate::dot`], so both give the same bits.
//!
//! # Shapes
//! A panel covers `lanes` rows and k elements (a multiple of the format's block; the caller cuts long rows, and
//! accumulates in `y`):
//! ```text
//! q     [k/4][lanes][4]      quants, unsigned, or signed plus the level's offset
//! scale [k/SUB][lanes]       super-blocks: integer scales, as the level multiplies them
//! bias  [k/32][lanes]        super-blocks: two 16-bit factors of the sums of 16 activations,
//!       [k/64][lanes]        or, where 32 weights share one, of the sums of 32
//! d, m  [k/LEN][lanes]
//! ```
//! `x` packed (see [`crate::acts`]); `y[c·stride + r]`: written by the call for the first elements, added to by those for later ones, in order.

use crate::acts::{Acts, both};
use crate::quant::Blocked;

/// Weights laid out for [`crate::quant::Format::tile`].
#[derive(Clone, Copy, Debug)]
pub struct Panel<'a> {
    /// Quants.
    pub q: &'a [u8],
    /// Integer scales.
    pub scale: &'a [i32],
    /// Factors of the activations' sums.
    pub bias: &'a [i32],
    /// Float scales.
    pub d: &'a [f32],
    /// Float minima.
    pub m: &'a [f32],
}

/// The memory of one panel; [`PanelMut::carve`] cuts it out of a scratch buffer.
#[derive(Debug)]
pub struct PanelMut<'a> {
    /// Quants; its length says how many elements of each row the panel takes.
    pub q: &'a mut [u8],
    /// Integer scales.
    pub scale: &'a mut [i32],
    /// Factors of the activations' sums.
    pub bias: &'a mut [i32],
    /// Float scales.
    pub d: &'a mut [f32],
    /// Float minima.
    pub m: &'a mut [f32],
}

impl<'a> PanelMut<'a> {
    /// 32-bit words that a panel of `lanes` rows and `k` elements occupies.
    pub const fn words(lanes: usize, k: usize) -> usize {
        // quants k/4, scales at most k/16, sums' factors k/32, d and m at most k/32 each
        lanes * (k / 4 + k / 16 + 3 * (k / 32))
    }

    /// A panel of `lanes` rows and `k` elements in `scratch`, which holds at least [`PanelMut::words`].
    pub fn carve(scratch: &'a mut [u32], lanes: usize, k: usize) -> Self {
        let (q, rest) = scratch.split_at_mut(lanes * k / 4);
        let (scale, rest) = rest.split_at_mut(lanes * k / 16);
        let (bias, rest) = rest.split_at_mut(lanes * k / 32);
        let (d, rest) = rest.split_at_mut(lanes * k / 32);
        let (m, _) = rest.split_at_mut(lanes * k / 32);
        PanelMut {
            q: bytemuck::cast_slice_mut(q),
            scale: bytemuck::cast_slice_mut(scale),
            bias: bytemuck::cast_slice_mut(bias),
            d: bytemuck::cast_slice_mut(d),
            m: bytemuck::cast_slice_mut(m),
        }
    }

    /// The same memory, to be read.
    pub fn view(&self) -> Panel<'_> {
        Panel { q: self.q, scale: self.scale, bias: self.bias, d: self.d, m: self.m }
    }
}

levels! {
    {
        /// Lays `w` (at most `lanes` rows), from element `from` on.
        fn fill_blocks[F: Blocked, Q: Fn([&F::Block; simd::wide::PIECES]) -> [simd::wide::Bytes; 2]](
            w: &[u8], row_bytes: usize, from: usize, to: PanelMut<'_>, pieces: Q) {
            const L: usize = simd::wide::LANES;
            const G: usize = simd::wide::GROUPS;
            let n = w.len() / row_bytes;
            let all: &[F::Block] = bytemuck::cast_slice(w);
            let (words, _) = bytemuck::cast_slice_mut::<u8, i32>(to.q).as_chunks_mut::<L>();
            let (words, _) = words.as_chunks_mut::<G>();
            let (words, _) = words.as_chunks_mut::<8>();
            let (d, _) = to.d.as_chunks_mut::<L>();
            let (m, _) = to.m.as_chunks_mut::<L>();
            let per = all.len() / n;
            for g in 0..G {
                let first: [usize; L] = core::array::from_fn(|r| (g * L + r).min(n - 1) * per + from / 32);
                for (b, words) in words.iter_mut().enumerate() {
                    let row: [&F::Block; L] = core::array::from_fn(|r| &all[first[r] + b]);
                    let quad: [[simd::wide::Bytes; 2]; 4] =
                        core::array::from_fn(|i| pieces(core::array::from_fn(|p| row[4 * p + i])));
                    for h in 0..2 {
                        let turned =
                            simd::wide::turn_pieces(core::array::from_fn(|i| at::quads::offset::<F>(quad[i][h])));
                        for k in 0..4 {
                            simd::wide::store_ints(&mut words[4 * h + k][g], turned[k]);
                        }
                    }
                    let half = |f: fn(&F::Block) -> u16| simd::wide::load_f16(&core::array::from_fn(|r| f(row[r])));
                    simd::wide::store(&mut d[b * G + g], half(F::d));
                    if F::MIN {
                        simd::wide::store(&mut m[b * G + g], half(F::m));
                    }
                }
            }
        }

        fn fill_supers[F: Blocked, Q: Fn([&F::Block; simd::wide::PIECES], usize) -> [simd::wide::Bytes; 8],
                       S: Fn([&F::Block; simd::wide::PIECES]) -> ([simd::wide::Bytes; 2], [simd::wide::Bytes; 2])](
            w: &[u8], row_bytes: usize, from: usize, to: PanelMut<'_>, pieces: Q, factors: S) {
            const L: usize = simd::wide::LANES;
            const G: usize = simd::wide::GROUPS;
            let n = w.len() / row_bytes;
            let all: &[F::Block] = bytemuck::cast_slice(w);
            let (words, _) = bytemuck::cast_slice_mut::<u8, i32>(to.q).as_chunks_mut::<L>();
            let (words, _) = words.as_chunks_mut::<G>();
            let (words, _) = words.as_chunks_mut::<32>();
            let (words, _) = words.as_chunks_mut::<2>();
            let (d, _) = to.d.as_chunks_mut::<L>();
            let (m, _) = to.m.as_chunks_mut::<L>();
            let (scales, _) = to.scale.as_chunks_mut::<L>();
            let (biases, _) = to.bias.as_chunks_mut::<L>();
            let per = all.len() / n;
            for g in 0..G {
                let first: [usize; L] = core::array::from_fn(|r| (g * L + r).min(n - 1) * per + from / 256);
                for (b, words) in words.iter_mut().enumerate() {
                    let row: [&F::Block; L] = core::array::from_fn(|r| &all[first[r] + b]);
                    let block = |i: usize| core::array::from_fn(|p| row[4 * p + i]);
                    for (h, words) in words.iter_mut().enumerate() {
                        let quads: [[simd::wide::Bytes; 8]; 4] = core::array::from_fn(|i| pieces(block(i), h));
                        for j in 0..8 {
                            let turned =
                                simd::wide::turn_pieces(core::array::from_fn(|i| at::quads::offset::<F>(quads[i][j])));
                            for k in 0..4 {
                                simd::wide::store_ints(&mut words[4 * j + k][g], turned[k]);
                            }
                        }
                    }
                    let mut s = [[simd::wide::as_bytes(simd::wide::zero_ints()); 4]; 2];
                    let mut bias = s;
                    for i in 0..4 {
                        let (scale, low) = factors(block(i));
                        let low = at::quads::bias::<F>(scale, low);
                        for h in 0..2 {
                            (s[h][i], bias[h][i]) = (scale[h], low[h]);
                        }
                    }
                    if F::SUB == 32 {
                        let bias = simd::wide::turn_pieces(core::array::from_fn(|i| at::quads::once(bias[0][i], bias[1][i])));
                        for k in 0..4 {
                            simd::wide::store_ints(&mut biases[(4 * b + k) * G + g], bias[k]);
                        }
                    }
                    for h in 0..2 {
                        let (s, bias) = (simd::wide::turn_pieces(s[h]), simd::wide::turn_pieces(bias[h]));
                        for k in 0..4 {
                            let at = 8 * b + 4 * h + k;
                            if F::SUB == 16 {
                                simd::wide::store_ints(&mut biases[at * G + g], bias[k]);
                            }
                            let at = at * 32 / F::SUB;
                            simd::wide::store_ints(&mut scales[at * G + g], simd::wide::low_scale(s[k]));
                            if F::SUB == 16 {
                                simd::wide::store_ints(&mut scales[(at + 1) * G + g], simd::wide::high_scale(s[k]));
                            }
                        }
                    }
                    let half = |f: fn(&F::Block) -> u16| simd::wide::load_f16(&core::array::from_fn(|r| f(row[r])));
                    simd::wide::store(&mut d[b * G + g], half(F::d));
                    if F::MIN {
                        simd::wide::store(&mut m[b * G + g], half(F::m));
                    }
                }
            }
        }

        /// The sums of one group of activations as they stand, `[GROUPS][COLUMNS]`: nothing before the first element.
        fn begin(from: usize, y: &[f32], stride: usize) -> [[simd::wide::Floats; simd::wide::COLUMNS]; simd::wide::GROUPS] {
            const L: usize = simd::wide::LANES;
            if from == 0 {
                return [[simd::wide::zero(); simd::wide::COLUMNS]; simd::wide::GROUPS];
            }
            core::array::from_fn(|g| {
                core::array::from_fn(|c| simd::wide::load(y[c * stride + g * L..][..L].try_into().expect("lanes")))
            })
        }

        fn end(acc: [[simd::wide::Floats; simd::wide::COLUMNS]; simd::wide::GROUPS], y: &mut [f32], stride: usize) {
            const L: usize = simd::wide::LANES;
            for (g, acc) in acc.into_iter().enumerate() {
                for (c, acc) in acc.into_iter().enumerate() {
                    simd::wide::store((&mut y[c * stride + g * L..][..L]).try_into().expect("lanes"), acc);
                }
            }
        }

        /// `y[c][lanes] (+)= panel · x[c]` for one packed group of activations, whose rows hold the panel's elements
        /// from `from` on.
        fn tile_blocks[F: Blocked](p: Panel<'_>, x: Acts<'_>, from: usize, y: &mut [f32], stride: usize) {
            const C: usize = simd::wide::COLUMNS;
            const L: usize = simd::wide::LANES;
            const G: usize = simd::wide::GROUPS;
            let (q, _) = p.q.as_chunks::<{ 4 * L }>();
            let (q, _) = q.as_chunks::<G>();
            let (q, _) = q.as_chunks::<8>();
            let len = q.len();
            let (d, _) = p.d.as_chunks::<L>();
            let (d, _) = d.as_chunks::<G>();
            let (m, _) = p.m.as_chunks::<L>();
            let (m, _) = m.as_chunks::<G>();
            let (d, m) = (&d[..len], &m[..len]);
            let (xq, _) = x.q[from * C..].as_chunks::<4>();
            let (xq, _) = xq.as_chunks::<C>();
            let (xq, _) = xq.as_chunks::<8>();
            let (xd, _) = x.d[from / 32 * C..].as_chunks::<C>();
            let (xs, _) = x.sums[from / 32 * C..].as_chunks::<C>();
            let (xq, xd, xs) = (&xq[..len], &xd[..len], &xs[..len]);
            let mut acc = begin(from, y, stride);
            let offset = if F::SIGNED { simd::wide::SIGNED_OFFSET } else { F::OFFSET };
            let run = const { simd::wide::steps(F::MAX) };
            for b in 0..len {
                let mut total = [[simd::wide::zero_ints(); C]; G];
                let mut partial = [[simd::wide::zero_partial(); C]; G];
                for s in 0..8 {
                    let w: [simd::wide::Bytes; G] = core::array::from_fn(|g| simd::wide::load_panel(&q[b][s][g]));
                    for c in 0..C {
                        let x = simd::wide::splat_four(&xq[b][s][c]);
                        for g in 0..G {
                            partial[g][c] = if F::SIGNED {
                                simd::wide::step_ss(partial[g][c], w[g], x)
                            } else {
                                simd::wide::step_us(partial[g][c], w[g], x)
                            };
                        }
                    }
                    if s == 7 || (s + 1).is_multiple_of(run) {
                        for g in 0..G {
                            for c in 0..C {
                                total[g][c] = simd::wide::widen_plain(total[g][c], partial[g][c]);
                                partial[g][c] = simd::wide::zero_partial();
                            }
                        }
                    }
                }
                for c in 0..C {
                    let sum = both(xs[b][c]);
                    let dx = simd::wide::splat(xd[b][c]);
                    for g in 0..G {
                        let t = if offset == 0 {
                            total[g][c]
                        } else {
                            simd::wide::sub_ints(total[g][c], simd::wide::splat_int(offset * sum))
                        };
                        let wd = simd::wide::load(&d[b][g]);
                        acc[g][c] = simd::wide::fma(simd::wide::mul(wd, dx), simd::wide::from_ints(t), acc[g][c]);
                        if F::MIN {
                            let s = simd::wide::splat(xd[b][c] * sum as f32);
                            acc[g][c] = simd::wide::fma(simd::wide::load(&m[b][g]), s, acc[g][c]);
                        }
                    }
                }
            }
            end(acc, y, stride);
        }

        fn tile_supers[F: Blocked](p: Panel<'_>, x: Acts<'_>, from: usize, y: &mut [f32], stride: usize) {
            const C: usize = simd::wide::COLUMNS;
            const L: usize = simd::wide::LANES;
            const G: usize = simd::wide::GROUPS;
            let (q, _) = p.q.as_chunks::<{ 4 * L }>();
            let (q, _) = q.as_chunks::<G>();
            let (q, _) = q.as_chunks::<64>();
            let len = q.len();
            let (d, _) = p.d.as_chunks::<L>();
            let (d, _) = d.as_chunks::<G>();
            let (m, _) = p.m.as_chunks::<L>();
            let (m, _) = m.as_chunks::<G>();
            let (d, m) = (&d[..len], &m[..len]);
            let (scale, _) = p.scale.as_chunks::<L>();
            let (scale, _) = scale.as_chunks::<G>();
            let (bias, _) = p.bias.as_chunks::<L>();
            let (bias, _) = bias.as_chunks::<G>();
            // the sums that the factors belong to: of 16 or of 32 activations, two by two
            let pairs = const { 128 / F::SUB };
            let bias = &bias[..pairs * len];
            let (xq, _) = x.q[from * C..].as_chunks::<4>();
            let (xq, _) = xq.as_chunks::<C>();
            let (xq, _) = xq.as_chunks::<64>();
            let (xd, _) = x.d[from / 256 * C..].as_chunks::<C>();
            let xs = if F::SUB == 16 { &x.sums[from / 32 * C..] } else { &x.wide[from / 64 * C..] };
            let (xs, _) = xs.as_chunks::<C>();
            let (xq, xd, xs) = (&xq[..len], &xd[..len], &xs[..pairs * len]);
            let mut acc = begin(from, y, stride);
            let biased = F::MIN || F::OFFSET != 0 || (F::SIGNED && simd::wide::SIGNED_OFFSET != 0);
            let subs = 256 / F::SUB;
            let scale = &scale[..subs * len];
            let run = const { simd::wide::steps(F::MAX) };
            for b in 0..len {
                let mut total = [[simd::wide::zero_ints(); C]; G];
                let mut low = total;
                if biased {
                    for j in pairs * b..pairs * (b + 1) {
                        for g in 0..G {
                            let f = simd::wide::load_ints(&bias[j][g]);
                            for c in 0..C {
                                low[g][c] = simd::wide::madd_lanes(low[g][c], f, xs[j][c]);
                            }
                        }
                    }
                    if !F::MIN {
                        total = low;
                    }
                }
                for sub in 0..subs {
                    let steps = F::SUB / 4;
                    let s: [simd::wide::Ints; G] =
                        core::array::from_fn(|g| simd::wide::load_ints(&scale[subs * b + sub][g]));
                    let mut partial = [[simd::wide::zero_partial(); C]; G];
                    for step in 0..F::SUB / 4 {
                        let at = sub * steps + step;
                        let w: [simd::wide::Bytes; G] = core::array::from_fn(|g| simd::wide::load_panel(&q[b][at][g]));
                        for c in 0..C {
                            let x = simd::wide::splat_four(&xq[b][at][c]);
                            for g in 0..G {
                                partial[g][c] = if F::SIGNED {
                                    simd::wide::step_ss(partial[g][c], w[g], x)
                                } else {
                                    simd::wide::step_us(partial[g][c], w[g], x)
                                };
                            }
                        }
                        if step + 1 == steps || (step + 1).is_multiple_of(run) {
                            for g in 0..G {
                                for c in 0..C {
                                    total[g][c] = simd::wide::widen(total[g][c], partial[g][c], s[g]);
                                    partial[g][c] = simd::wide::zero_partial();
                                }
                            }
                        }
                    }
                }
                for c in 0..C {
                    let dx = simd::wide::splat(xd[b][c]);
                    for g in 0..G {
                        let wd = simd::wide::load(&d[b][g]);
                        let t = simd::wide::from_ints(total[g][c]);
                        acc[g][c] = simd::wide::fma(simd::wide::mul(wd, dx), t, acc[g][c]);
                        if F::MIN {
                            let wm = simd::wide::mul(simd::wide::load(&m[b][g]), dx);
                            acc[g][c] = simd::wide::fnma(wm, simd::wide::from_ints(low[g][c]), acc[g][c]);
                        }
                    }
                }
            }
            end(acc, y, stride);
        }
    }

    /// How many rows of weights a panel holds at this level.
    pub fn lanes() -> usize {
        simd::wide::LANES * simd::wide::GROUPS
    }
}
