//! Attention over tiles of [`TILE`] keys with a running softmax (Milakov, Gimelshein, "Online normalizer calculation
//! for softmax", 2018; Dao et al., "FlashAttention", 2022), and its gradient.
//!
//! A tile begins at a position that is a multiple of [`TILE`], whatever the query; so a query's result is the same
//! sequence of operations in a prompt, in pieces of it, or alone.
//!
//! # Forward, per query row, over tiles in order
//! ```text
//! s_j = scale·Σ_d q_d·k_jd               (j ≤ the query's position; others do not count)
//! m′ = max(m, max_j s_j)     c = e^{m − m′}     p_j = e^{s_j − m′}
//! l ← c·l + Σ_j p_j          o ← c·o + Σ_j p_j·v_j
//! ```
//! and at the end `o ← o / l`, `L = m + ln l`.
//!
//! # Backward, per tile, with P = e^{s − L} and D = Σ_d do_d·o_d
//! ```text
//! dv_j += Σ_i P_ij·do_i        dS_ij = scale·P_ij·(Σ_d do_id·v_jd − D_i)
//! dq_i += Σ_j dS_ij·k_j        dk_j += Σ_i dS_ij·q_i
//! ```
//!
//! # Shapes
//! `q, o, do, dq [rows][head]`; a tile of keys `k [TILE][head]` and transposed `kt [head][TILE]`, of values
//! `v [TILE][head]`, `vt [head][TILE]`; `valid[row]`: how many keys of this tile the row sees.

use crate::count::{Count, Four, One, Six, Three, Twelve, Two};

/// Keys per tile.
pub const TILE: usize = 64;

/// The most query rows one call takes.
pub const ROWS: usize = 48;

/// What a query row remembers between tiles.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Running {
    /// The largest score so far.
    pub m: f32,
    /// The sum of e^{s − m}.
    pub l: f32,
}

impl Running {
    /// Before the first key.
    pub const START: Running = Running { m: f32::NEG_INFINITY, l: 0.0 };

    /// log Σ e^s.
    pub fn log_sum(self) -> f32 {
        self.m + self.l.ln()
    }
}

/// Memory for one call, allocated once per worker.
#[derive(Debug)]
pub struct Scratch {
    s: Vec<f32>,
    p: Vec<f32>,
    packed: Vec<f32>,
    /// Queries, packed for all tiles.
    q: Vec<f32>,
    /// Gradients of outputs, packed for all tiles.
    d_out: Vec<f32>,
}

/// The longest packed group: [`crate::gemm::rows`] is at most this.
const GROUP: usize = 16;

impl Scratch {
    /// Enough for heads up to `head` wide; without `back` for [`forward`] alone.
    pub fn new(head: usize, back: bool) -> Self {
        let rows = |on: bool| vec![0.0; if on { (ROWS + GROUP) * head } else { 0 }];
        Scratch {
            s: vec![0.0; ROWS * TILE],
            p: vec![0.0; if back { ROWS * TILE } else { 0 }],
            packed: vec![0.0; Self::longest(head) * GROUP],
            q: rows(true),
            d_out: rows(back),
        }
    }

    fn longest(head: usize) -> usize {
        head.max(TILE).max(ROWS)
    }

    /// Numbers that [`Scratch::new`] allocates.
    pub fn len(head: usize, back: bool) -> usize {
        let times = if back { 2 } else { 1 };
        times * (ROWS * TILE + (ROWS + GROUP) * head) + Self::longest(head) * GROUP
    }
}

/// One tile of keys and values as f32.
#[derive(Clone, Copy, Debug)]
pub struct Keys<'a> {
    /// `[head][TILE]`
    pub kt: &'a [f32],
    /// `[TILE][head]`
    pub v: &'a [f32],
}

/// One tile of keys and values as 16-bit floats.
#[derive(Clone, Copy, Debug)]
pub struct Half<'a> {
    /// `[head][TILE]`
    pub kt: &'a [u16],
    /// `[TILE][head]`
    pub v: &'a [u16],
}

/// A tile as it is cached, and the one that will be looked at next.
#[derive(Clone, Copy, Debug)]
pub struct Cached<'a> {
    /// What is multiplied.
    pub now: Half<'a>,
    /// What memory is asked for meanwhile.
    pub next: Half<'a>,
}

/// What the gradient needs besides [`Keys`].
#[derive(Clone, Copy, Debug)]
pub struct KeysBack<'a> {
    /// `[head][TILE]`
    pub kt: &'a [f32],
    /// `[TILE][head]`
    pub k: &'a [f32],
    /// `[head][TILE]`
    pub vt: &'a [f32],
}

/// The query side of the gradient.
#[derive(Clone, Copy, Debug)]
pub struct QueryBack<'a> {
    /// `[rows][head]`
    pub q: &'a [f32],
    /// Gradient of the output, `[rows][head]`.
    pub d_out: &'a [f32],
    /// log Σ e^s of each row.
    pub log_sum: &'a [f32],
    /// Σ do·o of each row.
    pub delta: &'a [f32],
    /// Keys of this tile that each row sees.
    pub valid: &'a [usize],
}

levels! {
    {
        /// `c [m][n] += a · b [k][n]` for rows that [`pack`] packed.
        fn multiply_packed(a: &[f32], m: usize, k: usize, b: &[f32], n: usize, c: &mut [f32]) {
            let group = simd::wide::ROWS;
            for (first, a) in (0..m).step_by(group).zip(a.chunks_exact(k * group)) {
                at::gemm::add(group.min(m - first), n, a, b, n, &mut c[first * n..], n);
            }
        }

        fn pack(a: &[f32], m: usize, k: usize, packed: &mut [f32]) {
            let group = simd::wide::ROWS;
            for (first, packed) in (0..m).step_by(group).zip(packed.chunks_exact_mut(k * group)) {
                at::gemm::pack(&a[first * k..], k, 1, group.min(m - first), k, 1.0, packed);
            }
        }

        /// `c [m][n] += a [m][k] · b [k][n]`, in groups of packed rows; `a[i][p]` at `a[i·row + p·step]`.
        fn multiply(a: &[f32], row: usize, step: usize, m: usize, k: usize, b: &[f32], n: usize, c: &mut [f32],
                    packed: &mut [f32]) {
            let group = simd::wide::ROWS;
            for first in (0..m).step_by(group) {
                let rows = group.min(m - first);
                at::gemm::pack(&a[first * row..], row, step, rows, k, 1.0, packed);
                at::gemm::add(rows, n, &packed[..k * group], b, n, &mut c[first * n..], n);
            }
        }

        fn scale_row(x: &mut [f32], by: f32) {
            for v in x {
                *v *= by;
            }
        }

        /// `c [M][2·LANES] += s [M][TILE]·b [TILE]`, the sums of [`crate::gemm`] without packing.
        fn weigh_tile[M: Count](s: &[[f32; TILE]], b: &[f32], n: usize, c: &mut [f32]) {
            const L: usize = simd::wide::LANES;
            const R: usize = simd::wide::ROWS;
            let s: [&[f32; TILE]; R] = core::array::from_fn(|i| &s[i.min(M::N - 1)]);
            let mut acc = [[simd::wide::zero(); 2]; R];
            for i in 0..M::N {
                let (c, _) = c[i * n..][..2 * L].as_chunks::<L>();
                acc[i] = [simd::wide::load(&c[0]), simd::wide::load(&c[1])];
            }
            for p in 0..TILE {
                let (b, _) = b[p * n..][..2 * L].as_chunks::<L>();
                let b = [simd::wide::load(&b[0]), simd::wide::load(&b[1])];
                for i in 0..M::N {
                    let x = simd::wide::splat(s[i][p]);
                    acc[i][0] = simd::wide::fma(x, b[0], acc[i][0]);
                    acc[i][1] = simd::wide::fma(x, b[1], acc[i][1]);
                }
            }
            for i in 0..M::N {
                let (c, _) = c[i * n..][..2 * L].as_chunks_mut::<L>();
                simd::wide::store(&mut c[0], acc[i][0]);
                simd::wide::store(&mut c[1], acc[i][1]);
            }
        }

        /// `o [rows][head] += s [rows][TILE]·v [TILE][head]`
        fn weigh(s: &[f32], v: &[f32], head: usize, o: &mut [f32], packed: &mut [f32]) {
            const R: usize = simd::wide::ROWS;
            const W: usize = 2 * simd::wide::LANES;
            let (each, _) = s.as_chunks::<TILE>();
            for (i, s) in each.chunks(R).enumerate() {
                let o = &mut o[i * R * head..];
                if s.len() < R || head % W != 0 {
                    multiply(s.as_flattened(), TILE, 1, s.len(), TILE, v, head, o, packed);
                    continue;
                }
                for j in (0..head).step_by(W) {
                    match R {
                        12 => weigh_tile::<Twelve>(s, &v[j..], head, &mut o[j..]),
                        6 => weigh_tile::<Six>(s, &v[j..], head, &mut o[j..]),
                        _ => weigh_tile::<Four>(s, &v[j..], head, &mut o[j..]),
                    }
                }
            }
        }

        /// `c [M][C·LANES] += Σ_p a(p, i)·b [p]`, the sums of [`crate::gemm`]; so many `lines` of `next` are asked for in each
        /// step, for a core has few places for lines on their way.
        fn few_of[A: Fn(usize, usize) -> f32, M: Count, C: Count](
            k: usize, a: A, b: &[u16], n: usize, next: *const u8, lines: usize, c: &mut [f32], c_stride: usize) {
            const L: usize = simd::wide::LANES;
            let mut acc = [[simd::wide::zero(); 4]; 4];
            for i in 0..M::N {
                let (c, _) = c[i * c_stride..][..C::N * L].as_chunks::<L>();
                for j in 0..C::N {
                    acc[i][j] = simd::wide::load(&c[j]);
                }
            }
            for (p, b) in b.chunks(n).enumerate().take(k) {
                for line in 0..lines {
                    simd::prefetch(next.wrapping_add(2 * p * n + 64 * line));
                }
                let (b, _) = b[..C::N * L].as_chunks::<L>();
                let mut x = [simd::wide::zero(); 4];
                for j in 0..C::N {
                    x[j] = simd::wide::load_f16(&b[j]);
                }
                for i in 0..M::N {
                    let a = simd::wide::splat(a(p, i));
                    for j in 0..C::N {
                        acc[i][j] = simd::wide::fma(a, x[j], acc[i][j]);
                    }
                }
            }
            for i in 0..M::N {
                let (c, _) = c[i * c_stride..][..C::N * L].as_chunks_mut::<L>();
                for j in 0..C::N {
                    simd::wide::store(&mut c[j], acc[i][j]);
                }
            }
        }

        /// All columns for M rows.
        fn few_rows[A: Fn(usize, usize) -> f32, M: Count](
            k: usize, a: A, b: &[u16], n: usize, next: Option<&[u16]>, c: &mut [f32]) {
            const L: usize = simd::wide::LANES;
            // sums and weights have to fit the registers
            const WIDE: usize = if L == 16 { 4 } else { 2 };
            let mut lines = if next.is_some() { (2 * n).div_ceil(64) } else { 0 };
            let next = next.unwrap_or(b).as_ptr().cast::<u8>();
            let mut j = 0;
            while j < n {
                if n - j < WIDE * L {
                    few_of::<_, M, One>(k, |p, i| a(p, i), &b[j..], n, next, lines, &mut c[j..], n);
                    j += L;
                } else if WIDE == 4 {
                    few_of::<_, M, Four>(k, |p, i| a(p, i), &b[j..], n, next, lines, &mut c[j..], n);
                    j += 4 * L;
                } else {
                    few_of::<_, M, Two>(k, |p, i| a(p, i), &b[j..], n, next, lines, &mut c[j..], n);
                    j += 2 * L;
                }
                lines = 0;
            }
        }

        /// `c [m][n] += a(p, i)·b [k][n]` for 16-bit factors as they are cached, `n` a multiple of the lanes.
        fn few[A: Fn(usize, usize) -> f32](
            m: usize, k: usize, a: A, b: &[u16], n: usize, next: &[u16], c: &mut [f32]) {
            for first in (0..m).step_by(4) {
                let (c, next) = (&mut c[first * n..], (first == 0).then_some(next));
                match m - first {
                    1 => few_rows::<_, One>(k, |p, i| a(p, first + i), b, n, next, c),
                    2 => few_rows::<_, Two>(k, |p, i| a(p, first + i), b, n, next, c),
                    3 => few_rows::<_, Three>(k, |p, i| a(p, first + i), b, n, next, c),
                    _ => few_rows::<_, Four>(k, |p, i| a(p, first + i), b, n, next, c),
                }
            }
        }

        /// One row's sums of a tile become weights; what the row holds is scaled to them.
        fn soften(s: &mut [f32; TILE], scale: f32, valid: usize, state: &mut Running, o: &mut [f32]) {
            const LANES: usize = simd::wide::LANES;
            if valid == 0 {
                s.fill(0.0);
                return;
            }
            for v in s.iter_mut() {
                *v *= scale;
            }
            s[valid..].fill(f32::NEG_INFINITY);
            let (lanes, _) = s.as_chunks_mut::<LANES>();
            let mut top = simd::wide::splat(state.m);
            for v in lanes.iter() {
                top = simd::wide::max(top, simd::wide::load(v));
            }
            let m = simd::wide::largest(top);
            let shift = simd::wide::splat(m);
            for v in lanes.iter_mut() {
                simd::wide::store(v, at::math::exp(simd::wide::sub(simd::wide::load(v), shift)));
            }
            // e^{−∞} is clamped, not zero
            s[valid..].fill(0.0);
            let mut sum = simd::wide::zero();
            for v in s.as_chunks::<LANES>().0 {
                sum = simd::wide::add(sum, simd::wide::load(v));
            }
            let sum = simd::wide::sum(sum);
            if m > state.m {
                let c: [f32; LANES] = bytemuck::must_cast(at::math::exp(simd::wide::splat(state.m - m)));
                let c = if state.l == 0.0 { 0.0 } else { c[0] };
                state.l = state.l * c + sum;
                scale_row(o, c);
                state.m = m;
            } else {
                state.l += sum;
            }
        }
    }

    /// Readies query rows `[rows][head]` for [`forward`] over any tiles.
    pub fn ready(head: usize, q: &[f32], scratch: &mut Scratch) {
        pack(q, q.len() / head, head, &mut scratch.q);
    }

    /// Readies the gradients of their outputs for [`backward`].
    pub fn ready_back(head: usize, d_out: &[f32], scratch: &mut Scratch) {
        pack(d_out, d_out.len() / head, head, &mut scratch.d_out);
    }

    /// Takes the query rows that are ready over one tile.
    pub fn forward(head: usize, scale: f32, keys: Keys<'_>, valid: &[usize], state: &mut [Running], o: &mut [f32],
                   scratch: &mut Scratch) {
        let rows = valid.len();
        let s = &mut scratch.s[..rows * TILE];
        s.fill(0.0);
        multiply_packed(&scratch.q, rows, head, keys.kt, TILE, s);
        let (each, _) = s.as_chunks_mut::<TILE>();
        for (i, s) in each.iter_mut().enumerate() {
            soften(s, scale, valid[i], &mut state[i], &mut o[i * head..(i + 1) * head]);
        }
        weigh(s, keys.v, head, o, &mut scratch.packed);
    }

    /// Whether [`forward_cached`] takes so many rows: those of one packed group, whose numbers are widened once either way.
    pub fn few_enough(head: usize, rows: usize) -> bool {
        rows <= simd::wide::ROWS && head % simd::wide::LANES == 0
    }

    /// [`forward`] for few rows over 16-bit keys and values as they are cached: the same sums, without a copy in between.
    pub fn forward_cached(head: usize, scale: f32, keys: Cached<'_>, valid: &[usize], state: &mut [Running],
                          o: &mut [f32], scratch: &mut Scratch) {
        let rows = valid.len();
        let (s, _) = scratch.s.as_chunks_mut::<TILE>();
        let s = &mut s[..rows];
        s.as_flattened_mut().fill(0.0);
        let (q, _) = scratch.q[..head * simd::wide::ROWS].as_chunks::<{ simd::wide::ROWS }>();
        let [now, next] = [keys.now, keys.next];
        few(rows, head, |p, i| q[p][i], now.kt, TILE, next.kt, s.as_flattened_mut());
        for (i, s) in s.iter_mut().enumerate() {
            soften(s, scale, valid[i], &mut state[i], &mut o[i * head..(i + 1) * head]);
        }
        few(rows, TILE, |p, i| s[i][p], now.v, head, next.v, o);
    }

    /// Divides the outputs by their sums.
    pub fn finish(head: usize, state: &[Running], o: &mut [f32]) {
        for (state, o) in state.iter().zip(o.chunks_exact_mut(head)) {
            scale_row(o, 1.0 / state.l);
        }
    }

    /// For rows that are ready, adds one tile's share to `dq [rows][head]`, `dk [TILE][head]`, `dv [TILE][head]`.
    pub fn backward(head: usize, scale: f32, query: QueryBack<'_>, keys: KeysBack<'_>, dq: &mut [f32],
                    dk: &mut [f32], dv: &mut [f32], scratch: &mut Scratch) {
        const LANES: usize = simd::wide::LANES;
        let rows = query.valid.len();
        let (s, p) = (&mut scratch.s[..rows * TILE], &mut scratch.p[..rows * TILE]);
        s.fill(0.0);
        p.fill(0.0);
        multiply_packed(&scratch.q, rows, head, keys.kt, TILE, p);
        multiply_packed(&scratch.d_out, rows, head, keys.vt, TILE, s);
        for i in 0..rows {
            let (p, s) = (&mut p[i * TILE..][..TILE], &mut s[i * TILE..][..TILE]);
            let (log_sum, delta) = (simd::wide::splat(query.log_sum[i]), simd::wide::splat(query.delta[i]));
            let by = simd::wide::splat(scale);
            let (pl, _) = p.as_chunks_mut::<LANES>();
            let (sl, _) = s.as_chunks_mut::<LANES>();
            for (p, s) in pl.iter_mut().zip(sl) {
                let score = simd::wide::mul(simd::wide::load(p), by);
                let weight = at::math::exp(simd::wide::sub(score, log_sum));
                let d = simd::wide::sub(simd::wide::load(s), delta);
                simd::wide::store(p, weight);
                simd::wide::store(s, simd::wide::mul(simd::wide::mul(weight, d), by));
            }
            p[query.valid[i]..].fill(0.0);
            s[query.valid[i]..].fill(0.0);
        }
        multiply(s, TILE, 1, rows, TILE, keys.k, head, dq, &mut scratch.packed);
        multiply(p, 1, TILE, TILE, rows, query.d_out, head, dv, &mut scratch.packed);
        multiply(s, 1, TILE, TILE, rows, query.q, head, dk, &mut scratch.packed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Level;
    use crate::half::{f16_to_f32, f32_to_f16};

    fn wave(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 37 + seed * 101) % 211) as f32 / 105.0 - 1.0).collect()
    }
    fn transposed(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
        (0..rows * columns).map(|i| x[i % rows * columns + i / rows]).collect()
    }

    /// Plain attention in f64: output and loss = Σ out·g, over `n` keys, row i seeing `sees(i)`.
    fn plain(head: usize, scale: f64, q: &[f64], k: &[f64], v: &[f64], sees: usize) -> Vec<f64> {
        let s: Vec<f64> =
            (0..sees).map(|j| scale * (0..head).map(|d| q[d] * k[j * head + d]).sum::<f64>()).collect();
        let m = s.iter().copied().fold(f64::MIN, f64::max);
        let sum: f64 = s.iter().map(|s| (s - m).exp()).sum();
        (0..head).map(|d| (0..sees).map(|j| (s[j] - m).exp() / sum * v[j * head + d]).sum()).collect()
    }

    #[test]
    fn few_rows_over_what_is_cached_have_the_bits_of_many() {
        for level in Level::available() {
            for (head, rows) in [(16, 3), (64, 1), (64, 4), (80, 2), (96, 5), (128, 12)] {
                if !few_enough(level, head, rows) {
                    continue;
                }
                let tiles = 3;
                let half = |x: Vec<f32>| x.into_iter().map(f32_to_f16).collect::<Vec<u16>>();
                let wide = |x: &[u16]| x.iter().map(|v| f16_to_f32(*v)).collect::<Vec<f32>>();
                let (kt, v) = (half(wave(tiles * TILE * head, 2)), half(wave(tiles * TILE * head, 3)));
                let tile = |t: usize| {
                    let range = t * TILE * head..(t + 1) * TILE * head;
                    Half { kt: &kt[range.clone()], v: &v[range] }
                };
                let mut scratch = Scratch::new(head, false);
                ready(level, head, &wave(rows * head, 1), &mut scratch);
                let (mut states, mut os) =
                    ([(); 2].map(|()| vec![Running::START; rows]), [(); 2].map(|()| vec![0.0; rows * head]));
                for t in 0..tiles {
                    // the first rows see nothing of the last tile
                    let valid: Vec<usize> =
                        (0..rows).map(|i| (TILE * 2 + 7 * i).saturating_sub(t * TILE).min(TILE)).collect();
                    let ([many, few], [o, p]) = (&mut states, &mut os);
                    let (kt, v) = (wide(tile(t).kt), wide(tile(t).v));
                    forward(level, head, 0.3, Keys { kt: &kt, v: &v }, &valid, many, o, &mut scratch);
                    let keys = Cached { now: tile(t), next: tile((t + 1) % tiles) };
                    forward_cached(level, head, 0.3, keys, &valid, few, p, &mut scratch);
                }
                assert_eq!(states[0], states[1], "{level:?} {head} {rows}");
                assert_eq!(os[0], os[1], "{level:?} {head} {rows}");
            }
        }
    }

    #[test]
    fn forward_equals_f64_and_backward_equals_differences() {
        for level in Level::available() {
            for (head, rows, n) in [(16, 3, 20), (64, 5, 130), (80, 1, 65)] {
                let scale = 1.0 / (head as f32).sqrt();
                let tiles = n / TILE + 1;
                let (q, g) = (wave(rows * head, 1), wave(rows * head, 4));
                let (mut k, mut v) = (wave(tiles * TILE * head, 2), wave(tiles * TILE * head, 3));
                // row i sees i + n − rows + 1 keys
                let sees: Vec<usize> = (0..rows).map(|i| n - rows + 1 + i).collect();
                k[n * head..].fill(9.0); // beyond the last key: must not count
                v[n * head..].fill(9.0);
                let mut scratch = Scratch::new(head, true);
                ready(level, head, &q, &mut scratch);
                let mut state = vec![Running::START; rows];
                let mut o = vec![0.0; rows * head];
                let tile = |x: &[f32], t: usize| x[t * TILE * head..(t + 1) * TILE * head].to_vec();
                let valid =
                    |t: usize| sees.iter().map(|s| s.saturating_sub(t * TILE).min(TILE)).collect::<Vec<_>>();
                for t in 0..tiles {
                    let keys = Keys { kt: &transposed(&tile(&k, t), TILE, head), v: &tile(&v, t) };
                    forward(level, head, scale, keys, &valid(t), &mut state, &mut o, &mut scratch);
                }
                finish(level, head, &state, &mut o);
                let wide = |x: &[f32]| x.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
                let (q6, k6, v6) = (wide(&q), wide(&k), wide(&v));
                let total = |q: &[f64], k: &[f64], v: &[f64]| -> f64 {
                    (0..rows)
                        .map(|i| {
                            let o =
                                plain(head, f64::from(scale), &q[i * head..(i + 1) * head], k, v, sees[i]);
                            o.iter().zip(&g[i * head..]).map(|(o, g)| o * f64::from(*g)).sum::<f64>()
                        })
                        .sum()
                };
                for i in 0..rows {
                    let want = plain(head, f64::from(scale), &q6[i * head..], &k6, &v6, sees[i]);
                    for (a, b) in o[i * head..].iter().zip(want) {
                        assert!((f64::from(*a) - b).abs() < 1e-5, "{level:?} {a} {b}");
                    }
                }
                let log_sum: Vec<f32> = state.iter().map(|s| s.log_sum()).collect();
                let delta: Vec<f32> =
                    (0..rows).map(|i| (0..head).map(|d| o[i * head + d] * g[i * head + d]).sum()).collect();
                let mut dq = vec![0.0; rows * head];
                let (mut dk, mut dv) = (vec![0.0; k.len()], vec![0.0; v.len()]);
                for t in 0..tiles {
                    let (kt, vt) =
                        (transposed(&tile(&k, t), TILE, head), transposed(&tile(&v, t), TILE, head));
                    let keys = KeysBack { kt: &kt, k: &tile(&k, t), vt: &vt };
                    let valid = valid(t);
                    let query =
                        QueryBack { q: &q, d_out: &g, log_sum: &log_sum, delta: &delta, valid: &valid };
                    ready_back(level, head, &g, &mut scratch);
                    let at = t * TILE * head;
                    let (dk, dv) = (&mut dk[at..at + TILE * head], &mut dv[at..at + TILE * head]);
                    backward(level, head, scale, query, keys, &mut dq, dk, dv, &mut scratch);
                }
                let h = 1e-5;
                let check = |which: usize, grad: &[f32], count: usize| {
                    for i in (0..count).step_by(count / 23 + 1) {
                        let (mut a, mut b) =
                            ([q6.clone(), k6.clone(), v6.clone()], [q6.clone(), k6.clone(), v6.clone()]);
                        a[which][i] += h;
                        b[which][i] -= h;
                        let want = (total(&a[0], &a[1], &a[2]) - total(&b[0], &b[1], &b[2])) / (2.0 * h);
                        assert!((f64::from(grad[i]) - want).abs() < 2e-5, "{which} {i} {} {want}", grad[i]);
                    }
                };
                check(0, &dq, rows * head);
                check(1, &dk, n * head);
                check(2, &dv, n * head);
                assert!(dk[n * head..].iter().chain(&dv[n * head..]).all(|v| *v == 0.0));
            }
        }
    }
}
