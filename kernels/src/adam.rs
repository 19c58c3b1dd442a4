//! One step of AdamW (Loshchilov, Hutter, "Decoupled Weight Decay Regularization", 2019) over a flat arena.
//!
//! ```text
//! g ← clip·g
//! p ← p·(1 − lr·decay)
//! m ← β₁·m + (1 − β₁)·g        v ← β₂·v + (1 − β₂)·g²
//! p ← p − (lr / (1 − β₁ᵗ)) · m / ( √v / √(1 − β₂ᵗ) + ε )
//! ```
//! The order of operations is PyTorch's (`torch.optim.AdamW`).

/// The numbers of one step; f32 as they are applied.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub rate: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the denominator.
    pub epsilon: f32,
    /// Decoupled weight decay.
    pub decay: f32,
    /// 1 − β₁ᵗ
    pub correction1: f32,
    /// √(1 − β₂ᵗ)
    pub correction2: f32,
    /// Every gradient is multiplied with this first: clipping by the global norm.
    pub clip: f32,
}

levels! {
    {}
    /// Updates parameters and moments from gradients; all slices of one length.
    pub fn adamw(with: AdamW, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        let keep = 1.0 - with.rate * with.decay;
        let step = with.rate / with.correction1;
        for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let g = with.clip * g;
            *m += (1.0 - with.beta1) * (g - *m);
            *v = with.beta2 * *v + (1.0 - with.beta2) * g * g;
            *p = *p * keep - step * (*m / (v.sqrt() / with.correction2 + with.epsilon));
        }
    }
}
