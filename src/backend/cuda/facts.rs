//! What kernels must know of a batch: where its rows stand in their sequences, which tiles those have, what they wear.

use super::driver::Card;
use super::queue::{Memory, Region, Stream};
use crate::error::Result;
use crate::ops::Batch;
use crate::ops::kv::TILE;
use std::sync::Arc;

/// Facts of a batch on the device; they go there only if they are others than before.
#[derive(Debug)]
pub(super) struct Facts {
    memory: Memory,
    words: Vec<u32>,
    sent: Vec<u32>,
}

/// Where they are. Numbers are those of `kernels/cuda`.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    /// Rows.
    pub rows: usize,
    /// `[rows]` of u64; nothing while nothing is dropped
    pub names: Region,
    /// `[rows]`
    pub positions: Region,
    /// `[rows]`, into `tiles`
    pub first_tile: Region,
    /// `[rows]`: the slot of the layer, or −1
    pub worn: Region,
    /// Of all sequences, one after the other.
    pub tiles: Region,
    /// `[pieces][2]`: first row, rows
    pub pieces: Region,
    /// How many.
    pub piece_count: usize,
    /// The most rows of a piece.
    pub longest_piece: usize,
    /// `[chunks][3]`: first row of a sequence, its rows, first key
    pub chunks: Region,
    /// How many.
    pub chunk_count: usize,
    /// Some row wears a layer.
    pub any: bool,
}

const NOTHING: View = View {
    rows: 0,
    names: Region::NONE,
    positions: Region::NONE,
    first_tile: Region::NONE,
    worn: Region::NONE,
    tiles: Region::NONE,
    pieces: Region::NONE,
    piece_count: 0,
    longest_piece: 0,
    chunks: Region::NONE,
    chunk_count: 0,
    any: false,
};

impl Facts {
    /// Words for `rows` rows and `tiles` tiles of all sequences together: two of a name, three of a row, two of a piece,
    /// three of a chunk.
    fn words(rows: usize, tiles: usize) -> usize {
        rows * (2 + 3 + 2 + 3) + tiles
    }

    /// Bytes that [`Facts::new`] takes on the device.
    pub fn bytes(rows: usize, tiles: usize) -> u64 {
        4 * Self::words(rows, tiles) as u64
    }

    pub fn new(card: &Arc<Card>, rows: usize, tiles: usize) -> Result<Facts> {
        let words = Self::words(rows, tiles);
        Ok(Facts {
            memory: Memory::new(card, Self::bytes(rows, tiles))?,
            words: Vec::with_capacity(words),
            sent: Vec::with_capacity(words),
        })
    }

    /// Writes down a batch. `slot` says where a span's layer is; `names` are empty while nothing is dropped; keys get their
    /// gradients `chunk` at a time.
    pub fn set(
        &mut self,
        stream: &Stream,
        batch: Batch<'_>,
        names: &[u64],
        chunk: usize,
        slot: &dyn Fn(usize) -> Result<i32>,
    ) -> Result<View> {
        let (rows, whole) = (batch.rows(), self.memory.whole());
        let words = &mut self.words;
        words.clear();
        let mut view = View { rows, ..NOTHING };
        let part =
            |words: &Vec<u32>, from: usize| whole.part(4 * from as u64, 4 * (words.len() - from) as u64);
        words.extend(names.iter().flat_map(|n| [*n as u32, (*n >> 32) as u32]));
        view.names = part(words, 0);

        let from = words.len();
        for span in batch.spans {
            words.extend((span.position..span.position + span.rows).map(|p| p as u32));
        }
        view.positions = part(words, from);

        let from = words.len();
        let mut first = 0;
        for span in batch.spans {
            words.extend(std::iter::repeat_n(first, span.rows));
            first += span.tiles.len() as u32;
        }
        view.first_tile = part(words, from);

        let from = words.len();
        for (i, span) in batch.spans.iter().enumerate() {
            let slot = if span.delta.is_some() { slot(i)? } else { -1 };
            view.any |= slot >= 0;
            words.extend(std::iter::repeat_n(slot as u32, span.rows));
        }
        view.worn = part(words, from);

        let from = words.len();
        words.extend(batch.pieces.iter().flat_map(|p| [p.start as u32, p.len() as u32]));
        view.pieces = part(words, from);
        view.piece_count = batch.pieces.len();
        view.longest_piece = batch.pieces.iter().map(|p| p.len()).max().unwrap_or(0);

        let from = words.len();
        for span in batch.spans {
            for key in (0..span.rows).step_by(chunk) {
                words.extend([span.first as u32, span.rows as u32, key as u32]);
            }
        }
        view.chunks = part(words, from);
        view.chunk_count = (words.len() - from) / 3;

        // last, for they become more: everything else stays where it is from one token to the next
        let from = words.len();
        batch.spans.iter().for_each(|span| words.extend_from_slice(span.tiles));
        view.tiles = part(words, from);

        debug_assert!(chunk > 0 && TILE % chunk == 0);
        if self.words != self.sent {
            stream.upload(bytemuck::cast_slice(&self.words), whole)?;
            self.sent.clear();
            self.sent.extend_from_slice(&self.words);
        }
        Ok(view)
    }
}
