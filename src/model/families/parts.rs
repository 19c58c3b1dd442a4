//! What the families of decoders have in common, as sentences in the words of the builder.

use crate::model::program::Builder;
use crate::tensor::Register;

/// A layer's queries, keys and values from its normalised input.
pub(super) fn project(b: &mut Builder<'_>, eps: f32) -> [Register; 3] {
    let a = b.attention();
    let x = b.residual();
    let n = b.rms_norm(x, "attn_norm", eps, "n");
    let (queries, keys) = (a.heads * a.head, a.key_heads * a.head);
    b.linears(n, [("attn_q", queries, "q"), ("attn_k", keys, "k"), ("attn_v", keys, "v")])
}

/// The rest of a layer: turned attention, its output product, and the gated feed-forward of `ffn` columns.
pub(super) fn attend_and_feed(b: &mut Builder<'_>, [q, k, v]: [Register; 3], ffn: usize, eps: f32) {
    let (x, width) = (b.residual(), b.width());
    b.rotate(q);
    b.rotate(k);
    let attended = b.attend(q, k, v, "attended");
    let o = b.linear(attended, "attn_output", width, "o");
    let x1 = b.add(x, o, "x1");
    let m = b.rms_norm(x1, "ffn_norm", eps, "m");
    let [gate, up] = b.linears(m, [("ffn_gate", ffn, "gate"), ("ffn_up", ffn, "up")]);
    let inner = b.gate(gate, up, "inner");
    let down = b.linear(inner, "ffn_down", width, "down");
    b.end(x1, down);
}
