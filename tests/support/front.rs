//! A layer for tests: keys and values in front of a sequence, virtual tokens, and rows of the table. It has no place at
//! a product.
#![allow(dead_code)]

use onlay::model::Model;
use onlay::ops::{Backward, Base, Delta, Host, Site};
use onlay::rng::Rng;
use onlay::tensor::{Block, Mat, MatMut};
use onlay_kernels::Level;
use std::ops::Range;
use std::sync::Mutex;

/// `numbers`: `[layer][position][key, value][kv]`, then `[virtual token][width]`, then `[token of the table][width]`.
pub struct Front {
    pub prefix: usize,
    pub rows: usize,
    pub table: Vec<u32>,
    pub layers: usize,
    pub kv: usize,
    pub width: usize,
    pub vocabulary: usize,
    pub numbers: Vec<f32>,
    pub grads: Mutex<Vec<f32>>,
}

impl Front {
    /// Numbers from a seed, of about the size that keys, values and embeddings have.
    pub fn new(model: &Model, prefix: usize, rows: usize, table: &[u32], seed: u64) -> Front {
        let p = model.program();
        let mut front = Front {
            prefix,
            rows,
            table: table.to_vec(),
            layers: p.segments.len(),
            kv: p.attention.key_heads * p.attention.head,
            width: p.width,
            vocabulary: p.vocabulary,
            numbers: vec![],
            grads: Mutex::default(),
        };
        let (n, mut rng) = (front.prefix_len() + (rows + table.len()) * p.width, Rng::new(seed));
        front.numbers = (0..n).map(|_| rng.normal() * 0.5).collect();
        front.clear();
        front
    }

    pub fn prefix_len(&self) -> usize {
        2 * self.layers * self.prefix * self.kv
    }

    /// Where the key of a position is; its value follows.
    pub fn key(&self, layer: usize, position: usize) -> usize {
        2 * (layer * self.prefix + position) * self.kv
    }

    /// Where the row of a token is.
    pub fn row(&self, token: u32) -> Option<usize> {
        let behind = (token as usize).checked_sub(self.vocabulary).filter(|i| *i < self.rows);
        let own = || self.table.iter().position(|t| *t == token).map(|i| self.rows + i);
        behind.or_else(own).map(|i| self.prefix_len() + i * self.width)
    }

    pub fn clear(&self) {
        let mut grads = self.grads.lock().unwrap();
        grads.clear();
        grads.resize(self.numbers.len(), 0.0);
    }

    pub fn grads(&self) -> Vec<f32> {
        self.grads.lock().unwrap().clone()
    }
}

impl Delta for Front {
    fn width(&self, _: Site) -> usize {
        0
    }
    fn prepare(
        &self,
        _: Level,
        _: Site,
        _: usize,
        _: Mat<'_>,
        _: Range<usize>,
        _: &mut [f32],
        _: &mut Vec<f32>,
    ) {
        unreachable!("it has no width");
    }
    fn finish(
        &self,
        _: Level,
        _: Site,
        _: &[f32],
        _: usize,
        _: usize,
        _: &mut Block<'_>,
        _: Range<usize>,
        _: &mut Vec<f32>,
    ) {
        unreachable!("it has no width");
    }
    fn embeds(&self) -> bool {
        self.rows + self.table.len() > 0
    }
    fn embedding(&self, token: u32, row: &mut [f32]) -> bool {
        let Some(at) = self.row(token) else { return false };
        row.copy_from_slice(&self.numbers[at..at + self.width]);
        true
    }
    fn virtual_tokens(&self) -> usize {
        self.rows
    }
    fn prefix(&self) -> usize {
        self.prefix
    }
    fn prefix_row(&self, layer: usize, position: usize, key: &mut [f32], value: &mut [f32]) {
        let at = self.key(layer, position);
        key.copy_from_slice(&self.numbers[at..at + self.kv]);
        value.copy_from_slice(&self.numbers[at + self.kv..at + 2 * self.kv]);
    }
}

impl Backward for Front {
    fn learns(&self, _: Site) -> bool {
        false
    }
    fn backward(
        &self,
        _: &mut Host<'_>,
        _: Site,
        _: Base<'_>,
        _: Mat<'_>,
        _: Mat<'_>,
        _: Option<MatMut<'_>>,
    ) {
        unreachable!("it is at no product");
    }
    fn learns_embeddings(&self) -> bool {
        self.embeds()
    }
    fn embedding_back(&self, tokens: &[u32], dy: Mat<'_>) {
        let mut grads = self.grads.lock().unwrap();
        for (i, token) in tokens.iter().enumerate() {
            let Some(at) = self.row(*token) else { continue };
            grads[at..at + self.width].iter_mut().zip(dy.row(i)).for_each(|(to, d)| *to += d);
        }
    }
    fn learns_prefix(&self) -> bool {
        self.prefix > 0
    }
    fn prefix_back(&self, layer: usize, keys: &[f32], values: &[f32]) {
        assert_eq!((keys.len(), values.len()), (self.prefix * self.kv, self.prefix * self.kv));
        let mut grads = self.grads.lock().unwrap();
        let rows = keys.chunks_exact(self.kv).zip(values.chunks_exact(self.kv));
        for (position, (k, v)) in rows.enumerate() {
            let at = self.key(layer, position);
            let row = grads[at..at + 2 * self.kv].iter_mut();
            row.zip(k.iter().chain(v)).for_each(|(to, d)| *to += d);
        }
    }
}
