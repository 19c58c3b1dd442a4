//! Rotary positions (Su et al., "RoFormer", 2021) on the heads of one row, in place.
//!
//! # Forward
//! ```text
//! (xₐ, x_b) ← (xₐ·c − x_b·s, xₐ·s + x_b·c)        c, s = cos, sin of position·frequency i
//! ```
//! Pair i is (2i, 2i+1) in [`Pairs::Adjacent`] (LLaMA as GGUF keeps it), (i, i + d/2) in [`Pairs::Halves`] (Qwen).
//!
//! # Backward
//! The rotation by the opposite angle: call with `sin` negated ([`rotate`]'s `back`).
//!
//! # Shapes
//! `row`: heads side by side, `head` wide each; `cos`, `sin`: d/2 for the first d ≤ head columns of each head.

/// Which columns of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairs {
    /// (2i, 2i+1)
    Adjacent,
    /// (i, i + d/2)
    Halves,
}

levels! {
    {}
    /// Turns every head of `row`; by the opposite angle if `back`.
    pub fn rotate(pairs: Pairs, row: &mut [f32], head: usize, cos: &[f32], sin: &[f32], back: bool) {
        let half = cos.len();
        let sign = if back { -1.0 } else { 1.0 };
        for x in row.chunks_exact_mut(head) {
            match pairs {
                Pairs::Adjacent => {
                    for ((pair, c), s) in x.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
                        let (a, b, s) = (pair[0], pair[1], sign * s);
                        *pair = [a * c - b * s, a * s + b * c];
                    }
                }
                Pairs::Halves => {
                    let (first, second) = x.split_at_mut(half);
                    for (((a, b), c), s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                        let s = sign * s;
                        (*a, *b) = (*a * c - *b * s, *a * s + *b * c);
                    }
                }
            }
        }
    }
}
