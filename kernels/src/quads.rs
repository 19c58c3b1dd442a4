//! Weights of several rows side by side in one register.
//!
//! A register of the level's full width holds `PIECES` *pieces* of sixteen bytes, one from each of as many rows, so that one
//! byte product works on all of them against the same sixteen activations. Four registers make a *quad*: register i, piece
//! p belongs to row 4p + i of `LANES` rows. Then four sums of each row stand side by side, and one small tree
//! (`sum_pieces`) puts the sums of all rows in order; or four bytes of each row do, and `turn_pieces` lays them as a
//! panel wants them.

use crate::quant::Blocked;

levels! {
    {
        /// Asks for `lines` cache lines of what lies behind `rows`, from line `first` on: evenly while the rows are multiplied,
        /// for a core has few places for lines on their way.
        fn ask(rows: &[u8], first: usize, lines: usize) {
            let next = rows.as_ptr().wrapping_add(rows.len() + 64 * first);
            for line in 0..lines {
                simd::prefetch(next.wrapping_add(64 * line));
            }
        }

        /// The low and the high nibbles of sixteen bytes of each row.
        fn nibbles(x: [&[u8; 16]; simd::wide::PIECES]) -> [simd::wide::Bytes; 2] {
            let x = simd::wide::pieces(x);
            let low = |x| simd::wide::and(x, simd::wide::splat_byte(15));
            [low(x), low(simd::wide::shr_pairs::<4>(x))]
        }

        /// The rows' scales and minima as Q4_K and Q5_K keep them (`scales_and_minima` in `quant/q4_k.rs`), each twice,
        /// from the first sixteen bytes of their blocks.
        fn six_bits(x: [&[u8; 16]; simd::wide::PIECES]) -> ([simd::wide::Bytes; 2], [simd::wide::Bytes; 2]) {
            use simd::wide::{and, or, pieces, shr_pairs, shuffle, splat_piece};
            let x = pieces(x);
            // places: 4.. a, 8.. b, 12.. c; wanted: s0..s7, b0..b7
            let ab = shuffle(x, &[4, 5, 6, 7, 4, 5, 6, 7, 8, 9, 10, 11, 8, 9, 10, 11]);
            let c = shuffle(x, &[-1, -1, -1, -1, 12, 13, 14, 15, -1, -1, -1, -1, 12, 13, 14, 15]);
            let first = and(ab, splat_piece(&[63, 63, 63, 63, 0, 0, 0, 0, 63, 63, 63, 63, 0, 0, 0, 0]));
            let upper = and(shr_pairs::<2>(ab), splat_piece(&[0, 0, 0, 0, 48, 48, 48, 48, 0, 0, 0, 0, 48, 48, 48, 48]));
            let low = and(c, splat_piece(&[0, 0, 0, 0, 15, 15, 15, 15, 0, 0, 0, 0, 0, 0, 0, 0]));
            let high = and(shr_pairs::<4>(c), splat_piece(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 15, 15, 15, 15]));
            let all = or(or(first, upper), or(low, high));
            let twice = |a: i8| {
                shuffle(all, &[a, -1, a, -1, a + 1, -1, a + 1, -1, a + 2, -1, a + 2, -1, a + 3, -1, a + 3, -1])
            };
            ([twice(0), twice(4)], [twice(8), twice(12)])
        }

        /// Words that stand twice, from two registers of each row: each once.
        fn once(first: simd::wide::Bytes, last: simd::wide::Bytes) -> simd::wide::Bytes {
            let first = simd::wide::shuffle(first, &[0, 1, 4, 5, 8, 9, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1]);
            let last = simd::wide::shuffle(last, &[-1, -1, -1, -1, -1, -1, -1, -1, 0, 1, 4, 5, 8, 9, 12, 13]);
            simd::wide::or(first, last)
        }

        /// Signed quants as the level's byte product takes them.
        fn offset[F: Blocked](q: simd::wide::Bytes) -> simd::wide::Bytes {
            if F::SIGNED && simd::wide::SIGNED_OFFSET != 0 {
                simd::wide::xor(q, simd::wide::splat_byte(0x80))
            } else {
                q
            }
        }

        /// What the factors of the activations' sums are: the minima, or what each scale takes off its quants.
        fn bias[F: Blocked](s: [simd::wide::Bytes; 2], m: [simd::wide::Bytes; 2]) -> [simd::wide::Bytes; 2] {
            if F::MIN {
                return m;
            }
            let off = if F::SIGNED { simd::wide::SIGNED_OFFSET } else { F::OFFSET };
            [simd::wide::mul_words(s[0], -off as i16), simd::wide::mul_words(s[1], -off as i16)]
        }
    }
}
