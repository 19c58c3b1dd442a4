//! Encoders for ŵ = d·q: one scale, quants on a ladder.
//!
//! For fixed quants the error is least at
//!
//! ```text
//! d = Σwq / Σq²        and is then        E = Σw² − (Σwq)² / Σq²
//! ```
//!
//! A starting point puts the weight of the largest magnitude near one end of the ladder: beyond it, so that it is
//! clipped and the others are resolved better, or before it. Its quants give a better d by the equation above.

use super::*;

/// Sixteen places for the weight of the largest magnitude, in units of the ladder: ten from `LOW` and six from `HIGH`,
/// moved outwards by `inner..=outer`.
pub(in super::super) const fn starts<L: Ladder>(inner: f32, outer: f32) -> Lanes {
    let mut out = [0.0; LANES];
    let mut c = 0;
    while c < LANES {
        out[c] = if c < 10 {
            L::LOW - (inner + (outer - inner) * c as f32 / 9.0)
        } else {
            L::HIGH + (inner + (outer - inner) * (c - 10) as f32 / 5.0)
        };
        c += 1;
    }
    out
}

/// Each start's least-squares scale, and the error it leaves.
#[inline(always)]
fn settle<L: Ladder>(x: &[f32], starts: &Lanes) -> (Lanes, Lanes) {
    let (low, high) = range(x);
    let peak = inverse(if high > -low { high } else { low });
    let start = lanes(|c| starts[c] * peak);
    let (mut xx, mut xq, mut qq) = (0.0, [0.0; LANES], [0.0; LANES]);
    for &x in x {
        xx += x * x;
        for c in 0..LANES {
            let q = L::snap(x * start[c]);
            xq[c] += x * q;
            qq[c] += q * q;
        }
    }
    let d = lanes(|c| xq[c] * inverse(qq[c]));
    (d, lanes(|c| xx - d[c] * xq[c]))
}

/// Σ(w − d·q)² with the nearest quants.
#[inline(always)]
fn errors<L: Ladder>(x: &[f32], d: &Lanes) -> Lanes {
    let inverse = lanes(|c| inverse(d[c]));
    let mut out = [0.0; LANES];
    for &x in x {
        for c in 0..LANES {
            let e = x - d[c] * L::snap(x * inverse[c]);
            out[c] += e * e;
        }
    }
    out
}

/// A block with one scale: minimises Σ(wᵢ − d·qᵢ)² over f16 numbers d and ladder values q. Returns the bits of d and
/// the codes of q. Of the sixteen scales, rounded to f16, the exact error decides.
#[inline(always)]
pub(in super::super) fn block<L: Ladder>(x: &[f32; 32], starts: &Lanes) -> (u16, [u8; 32]) {
    let Some((x, unit)) = Unit::take(x) else { return (0, [L::code(0.0); 32]) };
    let (d, _) = settle::<L>(&x, starts);
    let e = errors::<L>(&x, &lanes(|c| unit.half(d[c])));
    let best = least(&e);
    // a ladder without 0 may do worse than no scale at all
    let d = if e[best] < energy(&x) { unit.half(d[best]) } else { 0.0 };
    let inverse = inverse(d);
    (unit.bits(d), x.map(|x| L::code(x * inverse)))
}

/// What [`super_block`] found: ŵ = d·s·q.
pub(in super::super) struct Found<const J: usize> {
    /// The f16 bits of d.
    pub d: u16,
    /// Values of the scales' ladder.
    pub s: [i32; J],
    /// Codes of the quants.
    pub q: [u8; 256],
}

/// A super-block of `J` scales for `SUB` weights each: minimises Σ(wᵢ − d·s·qᵢ)² over an f16 number d, a scale s of
/// the ladder `S` for each part, and quants of the ladder `L`.
///
/// Each part first settles on sixteen scales of its own. For a given d, its s is the one among these sixteen, divided
/// by d and rounded, whose exact error is least. Four d are tried: the one that makes the largest of the parts' best
/// scales `S::LOW`; one from the smallest scales that are nearly as good, so that a lone large weight does not coarsen
/// the scales of its neighbours; and after each the least-squares solution for its scales and quants,
///
/// ```text
/// d = Σ w·s·q / Σ (s·q)²
/// ```
#[inline(always)]
pub(in super::super) fn super_block<L: Ladder, S: Ladder, const SUB: usize, const J: usize>(
    x: &[f32; 256],
    starts: &Lanes,
) -> Found<J> {
    let Some((x, unit)) = Unit::take(x) else { return Found { d: 0, s: [0; J], q: [L::code(0.0); 256] } };
    let (parts, _) = x.as_chunks::<SUB>();
    let mut settled = [[0.0; LANES]; J];
    let (mut top, mut frugal) = (0f32, 0f32);
    for j in 0..J {
        let (d, e) = settle::<L>(&parts[j], starts);
        let best = least(&e);
        settled[j] = d;
        top = if d[best].abs() > top.abs() { d[best] } else { top };
        frugal = max(smallest_good(&lanes(|c| d[c].abs()), &e, best), frugal);
    }
    let (mut d, mut s, mut error) = (0.0, [0.0; J], energy(&x));
    let (mut next_d, mut next_s) = (d, s);
    for step in 0..4 {
        next_d = unit.half(match step {
            0 => top / S::LOW,
            2 => frugal.copysign(top) / (S::LOW + 1.0),
            _ => fit::<L, SUB, J>(parts, next_d, &next_s),
        });
        let (inverse, mut sum) = (inverse(next_d), 0.0);
        for j in 0..J {
            let scales = lanes(|c| S::snap(settled[j][c] * inverse));
            let e = errors::<L>(&parts[j], &lanes(|c| scales[c] * next_d));
            let best = least(&e);
            next_s[j] = scales[best];
            sum += e[best];
        }
        if sum < error {
            (d, s, error) = (next_d, next_s, sum);
        }
    }
    let mut q = [0; 256];
    for j in 0..J {
        let inverse = inverse(s[j] * d);
        for i in 0..SUB {
            q[SUB * j + i] = L::code(parts[j][i] * inverse);
        }
    }
    Found { d: unit.bits(d), s: s.map(int), q }
}

/// The least-squares d for given scales.
#[inline(always)]
fn fit<L: Ladder, const SUB: usize, const J: usize>(parts: &[[f32; SUB]], d: f32, s: &[f32; J]) -> f32 {
    let [mut wa, mut aa] = [[0.0; LANES]; 2];
    for j in 0..J {
        let inverse = inverse(s[j] * d);
        for x in parts[j].as_chunks::<LANES>().0 {
            for c in 0..LANES {
                let a = s[j] * L::snap(x[c] * inverse);
                wa[c] += x[c] * a;
                aa[c] += a * a;
            }
        }
    }
    sum(wa) * inverse(sum(aa))
}
