//! Encoders for ŵ = d·q − m: a scale and a minimum, quants 0..=HIGH.
//!
//! For fixed quants, with the means over n weights written w̄ and q̄, the error is least at
//!
//! ```text
//! d = Σ(w − w̄)q / (Σq² − n·q̄²)        m = d·q̄ − w̄        E = Σ(w − w̄)² − d·Σ(w − w̄)q
//! ```
//!
//! or, where m may not be negative and would be, at
//!
//! ```text
//! d = Σwq / Σq²        m = 0        E = Σw² − d·Σwq
//! ```

use super::*;

/// Sixteen ranges: each end of the weights' own range moved inwards by four amounts, in steps of the ladder.
pub(in super::super) const fn starts(outer: f32, inner: f32) -> [[f32; 2]; LANES] {
    let mut out = [[0.0; 2]; LANES];
    let mut c = 0;
    while c < LANES {
        let width = (inner - outer) / 3.0;
        out[c] = [outer + width * (c / 4) as f32, outer + width * (c % 4) as f32];
        c += 1;
    }
    out
}

/// What sixteen starts of a part settled on.
struct Settled {
    /// Scales.
    d: Lanes,
    /// Minima.
    m: Lanes,
    /// Mean quants.
    q: Lanes,
    /// Errors.
    e: Lanes,
    /// The mean weight.
    mean: f32,
}

/// One least-squares step for sixteen ranges. `FREE`: m may be negative.
#[inline(always)]
fn settle<L: Ladder, const N: usize, const FREE: bool>(x: &[f32; N], starts: &[[f32; 2]; LANES]) -> Settled {
    let (low, high) = range(x);
    let low = if FREE { low } else { min(low, 0.0) };
    let mut sums = [0.0; LANES];
    for part in x.as_chunks::<LANES>().0 {
        sums = lanes(|c| sums[c] + part[c]);
    }
    let n = N as f32;
    let mean = sum(sums) / n;
    let step = (high - low) / L::HIGH;
    let d = lanes(|c| step * ((L::HIGH - starts[c][0] - starts[c][1]) / L::HIGH));
    let inverses = lanes(|c| inverse(d[c]));
    // x + m of the start, for x with its mean taken off
    let shift = lanes(|c| (mean - low - step * starts[c][0]) * inverses[c]);
    let mut xx = 0.0;
    let [mut q1, mut qq, mut xq] = [[0.0; LANES]; 3];
    for &x in x {
        let x = x - mean;
        xx += x * x;
        for c in 0..LANES {
            let q = L::snap(x * inverses[c] + shift[c]);
            q1[c] += q;
            qq[c] += q * q;
            xq[c] += x * q;
        }
    }
    let q1 = lanes(|c| q1[c] * (1.0 / n));
    let d = lanes(|c| xq[c] * inverse(qq[c] - n * q1[c] * q1[c]));
    let m = lanes(|c| d[c] * q1[c] - mean);
    let free = lanes(|c| xx - d[c] * xq[c]);
    if FREE {
        return Settled { d, m, q: q1, e: free, mean };
    }
    let whole = lanes(|c| xq[c] + n * mean * q1[c]);
    let bound_d = lanes(|c| whole[c] * inverse(qq[c]));
    let bound_e = lanes(|c| xx + n * mean * mean - bound_d[c] * whole[c]);
    Settled {
        d: lanes(|c| if m[c] < 0.0 { bound_d[c] } else { d[c] }),
        e: lanes(|c| if m[c] < 0.0 { bound_e[c] } else { free[c] }),
        m: lanes(|c| max(m[c], 0.0)),
        q: q1,
        mean,
    }
}

/// Σ(w − d·q + m)² with the nearest quants.
#[inline(always)]
fn errors<L: Ladder>(x: &[f32], d: &Lanes, m: &Lanes) -> Lanes {
    let inverse = lanes(|c| inverse(d[c]));
    let mut out = [0.0; LANES];
    for &x in x {
        for c in 0..LANES {
            let x = x + m[c];
            let e = x - d[c] * L::snap(x * inverse[c]);
            out[c] += e * e;
        }
    }
    out
}

/// A block with one scale and one minimum of any sign: minimises Σ(wᵢ − d·qᵢ + m)² over f16 numbers d and m and q in
/// 0..=HIGH. Returns the bits of d and of −m, and q. Of the sixteen pairs, rounded to f16, the exact error decides.
#[inline(always)]
pub(in super::super) fn block<L: Ladder>(x: &[f32; 32], starts: &[[f32; 2]; LANES]) -> (u16, u16, [u8; 32]) {
    let Some((x, unit)) = Unit::take(x) else { return (0, 0, [0; 32]) };
    let Settled { d, m, .. } = settle::<L, 32, true>(&x, starts);
    let e = errors::<L>(&x, &lanes(|c| unit.half(d[c])), &lanes(|c| unit.half(m[c])));
    let best = least(&e);
    let (d, m) = (unit.half(d[best]), unit.half(m[best]));
    let inverse = inverse(d);
    (unit.bits(d), unit.bits(-m), x.map(|x| L::code((x + m) * inverse)))
}

/// What [`super_block`] found: ŵ = d·s·q − m·b.
pub(in super::super) struct Found<const J: usize> {
    /// The f16 bits of d.
    pub d: u16,
    /// The f16 bits of m.
    pub m: u16,
    /// The scales.
    pub s: [i32; J],
    /// The minima.
    pub b: [i32; J],
    /// The quants.
    pub q: [u8; 256],
}

/// A super-block of `J` scales and minima for `SUB` weights each: minimises Σ(wᵢ − d·s·qᵢ + m·b)² over f16 numbers d
/// and m, a scale s and a minimum b of the ladder `S` for each part, and quants of the ladder `L`.
///
/// Each part first settles on a scale of its own. For given d and m it tries the four s around it, each with the four
/// b around the minimum that suits it, (d·s·q̄ − w̄)/m; of the sixteen pairs the exact error decides. Four (d, m) are
/// tried: the one that makes the largest of the parts' scales and minima `S::HIGH`; one from the smallest that are
/// nearly as good, so that a lone large weight does not coarsen its neighbours' scales; and after each the
/// least-squares solution for its scales, minima and quants,
///
/// ```text
/// d·Σ(s·q)²  − m·Σ s·q·b = Σ w·s·q
/// d·Σ s·q·b  − m·Σ b²    = Σ w·b
/// ```
#[inline(always)]
pub(in super::super) fn super_block<L: Ladder, S: Ladder, const SUB: usize, const J: usize>(
    x: &[f32; 256],
    starts: &[[f32; 2]; LANES],
) -> Found<J> {
    let none = Found { d: 0, m: 0, s: [0; J], b: [0; J], q: [0; 256] };
    let Some((x, unit)) = Unit::take(x) else { return none };
    let (parts, _) = x.as_chunks::<SUB>();
    let mut own = [[0.0; 3]; J];
    let (mut top, mut frugal) = ([0f32; 2], [0f32; 2]);
    for j in 0..J {
        let t = settle::<L, SUB, false>(&parts[j], starts);
        let best = least(&t.e);
        own[j] = [t.d[best], t.q[best], t.mean];
        top = [max(own[j][0], top[0]), max(t.m[best], top[1])];
        let good = [smallest_good(&t.d, &t.e, best), smallest_good(&t.m, &t.e, best)];
        frugal = [max(good[0], frugal[0]), max(good[1], frugal[1])];
    }
    let (mut d, mut m, mut s, mut b, mut error) = (0.0, 0.0, [0.0; J], [0.0; J], energy(&x));
    let (mut next_d, mut next_m, mut next_s, mut next_b) = (d, m, s, b);
    for step in 0..4 {
        let next = match step {
            0 => top.map(|v| v / S::HIGH),
            2 => frugal.map(|v| v / (S::HIGH - 1.0)),
            _ => fit::<L, SUB, J>(parts, next_d, next_m, &next_s, &next_b),
        };
        (next_d, next_m) = (unit.half(next[0]), unit.half(next[1]));
        let (inverse_d, inverse_m, mut sum) = (inverse(next_d), inverse(next_m), 0.0);
        for j in 0..J {
            let [scale, q, mean] = own[j];
            let around = |v: f32, k: usize| S::snap(round(v - 0.5) + (k as f32 - 1.0));
            let scales = lanes(|c| around(scale * inverse_d, c / 4));
            let minima = lanes(|c| around((scales[c] * next_d * q - mean) * inverse_m, c % 4));
            let (ds, mb) = (lanes(|c| scales[c] * next_d), lanes(|c| minima[c] * next_m));
            let e = errors::<L>(&parts[j], &ds, &mb);
            let best = least(&e);
            (next_s[j], next_b[j]) = (scales[best], minima[best]);
            sum += e[best];
        }
        if sum < error {
            (d, m, s, b, error) = (next_d, next_m, next_s, next_b, sum);
        }
    }
    let mut q = [0; 256];
    for j in 0..J {
        let (inverse, m) = (inverse(s[j] * d), b[j] * m);
        for i in 0..SUB {
            q[SUB * j + i] = L::code((parts[j][i] + m) * inverse);
        }
    }
    Found { d: unit.bits(d), m: unit.bits(m), s: s.map(int), b: b.map(int), q }
}

/// The least-squares d and m for given scales and minima; neither below 0.
#[inline(always)]
fn fit<L: Ladder, const SUB: usize, const J: usize>(
    parts: &[[f32; SUB]],
    d: f32,
    m: f32,
    s: &[f32; J],
    b: &[f32; J],
) -> [f32; 2] {
    let [mut wa, mut wb, mut aa, mut ab, mut bb] = [[0.0; LANES]; 5];
    for j in 0..J {
        let (inverse, minimum) = (inverse(s[j] * d), b[j] * m);
        for x in parts[j].as_chunks::<LANES>().0 {
            for c in 0..LANES {
                let a = s[j] * L::snap((x[c] + minimum) * inverse);
                wa[c] += x[c] * a;
                wb[c] += x[c] * b[j];
                aa[c] += a * a;
                ab[c] += a * b[j];
                bb[c] += b[j] * b[j];
            }
        }
    }
    let [wa, wb, aa, ab, bb] = [wa, wb, aa, ab, bb].map(sum);
    let determinant = aa * bb - ab * ab;
    if determinant > 1e-6 * aa * bb {
        [max((wa * bb - wb * ab) / determinant, 0.0), max((wa * ab - wb * aa) / determinant, 0.0)]
    } else {
        [max(wa * inverse(aa), 0.0), m]
    }
}
