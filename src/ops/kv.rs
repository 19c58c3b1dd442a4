//! Keys and values of all sequences, in tiles of [`TILE`] positions.
//!
//! A sequence owns a list of tiles; a tile holds its positions for every layer and head. Keys lie transposed
//! (`[head][TILE]`), as attention multiplies them, values as rows (`[TILE][head]`). The pool is one planned
//! allocation; growing a sequence takes a tile from the free list.

use crate::error::{Error, Kind, Result};
use onlay_kernels::Level;
use onlay_kernels::attention::Half;
pub use onlay_kernels::attention::TILE;
use onlay_kernels::dense::{self, Dense};
use onlay_kernels::half::{f16_to_f32, f32_to_f16};

/// How cached keys and values are rounded. What is trained, scored and served uses one setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Precision {
    /// Not at all.
    F32,
    /// To 16-bit floats (kept finite).
    #[default]
    F16,
    /// To 8 bits with one f16 scale per 32 columns of a head, as Q8_0.
    Q8,
}

impl Precision {
    /// `f32`, `f16` or `q8_0`.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::F16 => "f16",
            Precision::Q8 => "q8_0",
        }
    }

    /// The precision of that name.
    ///
    /// # Errors
    /// `Argument` naming the three.
    pub fn named(name: &str) -> Result<Self> {
        [Precision::F32, Precision::F16, Precision::Q8]
            .into_iter()
            .find(|p| p.name() == name)
            .ok_or_else(|| Error::expected(Kind::Argument, "kv", "f32, f16 or q8_0", name))
    }
}

/// The shape of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Rounding.
    pub precision: Precision,
    /// Layers held at once (a trainer that recomputes holds one).
    pub layers: usize,
    /// Key heads.
    pub heads: usize,
    /// Columns per head.
    pub head: usize,
}

impl Shape {
    /// 32-bit words of one head's keys, or values, in one tile.
    fn words(self) -> usize {
        let n = TILE * self.head;
        match self.precision {
            Precision::F32 => n,
            Precision::F16 => n / 2,
            Precision::Q8 => n / 4 + n / 32 / 2,
        }
    }

    /// Bytes of one tile.
    pub fn tile_bytes(self) -> u64 {
        4 * (2 * self.words() * self.heads * self.layers) as u64
    }

    /// # Errors
    /// `Argument` if heads cannot be kept at this precision.
    pub fn check(self) -> Result<()> {
        if self.precision == Precision::Q8 && self.head % 32 != 0 {
            return Err(Error::expected(
                Kind::Argument,
                "kv q8_0",
                "heads of a multiple of 32 columns",
                self.head,
            ));
        }
        Ok(())
    }
}

/// The planned memory for keys and values.
#[derive(Debug)]
pub struct Pool {
    shape: Shape,
    data: Vec<u32>,
    free: Vec<u32>,
    tiles: usize,
}

impl Pool {
    /// A pool of `tiles` tiles.
    ///
    /// # Errors
    /// `Argument` for a shape that cannot be kept; `Memory` if the system does not give it.
    pub fn new(shape: Shape, tiles: usize) -> Result<Self> {
        shape.check()?;
        let words = (shape.tile_bytes() / 4) as usize * tiles;
        let mut data = Vec::new();
        data.try_reserve_exact(words).map_err(|_| {
            Error::new(Kind::Memory, format!("no memory for keys and values ({} bytes)", 4 * words as u64))
        })?;
        data.resize(words, 0);
        Ok(Pool { shape, data, free: (0..tiles as u32).rev().collect(), tiles })
    }

    /// Tiles that `positions` need.
    pub fn tiles_for(positions: usize) -> usize {
        positions.div_ceil(TILE)
    }

    /// Its shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Tiles nobody owns.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Gives a cleared tile, if one is left.
    pub fn take(&mut self) -> Option<u32> {
        let tile = self.free.pop()?;
        for layer in 0..self.shape.layers {
            let at = self.at(layer, tile, 0, false);
            // Leftovers of another sequence could be infinite, and nothing times infinity is not nothing.
            self.data[at..at + 2 * self.shape.words() * self.shape.heads].fill(0);
        }
        Some(tile)
    }

    /// Takes tiles back.
    pub fn give(&mut self, tiles: &mut Vec<u32>) {
        self.free.append(tiles);
        debug_assert!(self.free.len() <= self.tiles);
    }

    fn at(&self, layer: usize, tile: u32, head: usize, values: bool) -> usize {
        let s = self.shape;
        let layer = layer % s.layers;
        (((layer * self.tiles + tile as usize) * s.heads + head) * 2 + usize::from(values)) * s.words()
    }

    /// Writes the key and value rows of one position.
    pub fn store(&mut self, layer: usize, tiles: &[u32], position: usize, key: &[f32], value: &[f32]) {
        let (tile, slot) = (tiles[position / TILE], position % TILE);
        let Shape { precision, head, .. } = self.shape;
        let words = self.shape.words();
        for (h, (key, value)) in key.chunks_exact(head).zip(value.chunks_exact(head)).enumerate() {
            let at = self.at(layer, tile, h, false);
            let (k, v) = self.data[at..at + 2 * words].split_at_mut(words);
            match precision {
                Precision::F32 => {
                    let (k, v): (&mut [f32], &mut [f32]) =
                        (bytemuck::cast_slice_mut(k), bytemuck::cast_slice_mut(v));
                    for (d, x) in key.iter().enumerate() {
                        k[d * TILE + slot] = *x;
                    }
                    v[slot * head..(slot + 1) * head].copy_from_slice(value);
                }
                Precision::F16 => {
                    let (k, v): (&mut [u16], &mut [u16]) =
                        (bytemuck::cast_slice_mut(k), bytemuck::cast_slice_mut(v));
                    for (d, x) in key.iter().enumerate() {
                        k[d * TILE + slot] = finite(*x);
                    }
                    for (to, x) in v[slot * head..].iter_mut().zip(value) {
                        *to = finite(*x);
                    }
                }
                Precision::Q8 => {
                    let quants = TILE * head / 4;
                    let (kq, kd) = k.split_at_mut(quants);
                    let (vq, vd) = v.split_at_mut(quants);
                    let (kq, kd): (&mut [i8], &mut [u16]) =
                        (bytemuck::cast_slice_mut(kq), bytemuck::cast_slice_mut(kd));
                    let (vq, vd): (&mut [i8], &mut [u16]) =
                        (bytemuck::cast_slice_mut(vq), bytemuck::cast_slice_mut(vd));
                    for (b, x) in key.chunks_exact(32).enumerate() {
                        let (d, inverse) = scale(x);
                        kd[b * TILE + slot] = d;
                        for (i, x) in x.iter().enumerate() {
                            kq[(32 * b + i) * TILE + slot] = round(x * inverse);
                        }
                    }
                    for (b, x) in value.chunks_exact(32).enumerate() {
                        let (d, inverse) = scale(x);
                        vd[slot * (head / 32) + b] = d;
                        for (to, x) in vq[slot * head + 32 * b..].iter_mut().zip(x) {
                            *to = round(x * inverse);
                        }
                    }
                }
            }
        }
    }

    /// One head's keys and values of a tile where they lie, if those are 16-bit floats.
    pub fn half(&self, layer: usize, tile: u32, head: usize) -> Option<Half<'_>> {
        let at = self.at(layer, tile, head, false);
        let data = &self.data[at..at + 2 * self.shape.words()];
        let (kt, v) = bytemuck::cast_slice(data).split_at(TILE * self.shape.head);
        (self.shape.precision == Precision::F16).then_some(Half { kt, v })
    }

    /// One head's keys of a tile, transposed: `[head][TILE]`.
    pub fn keys(&self, level: Level, layer: usize, tile: u32, head: usize, out: &mut [f32]) {
        let at = self.at(layer, tile, head, false);
        let data = &self.data[at..at + self.shape.words()];
        match self.shape.precision {
            Precision::F32 => out.copy_from_slice(bytemuck::cast_slice(data)),
            Precision::F16 => dense::decode(level, Dense::F16, bytemuck::cast_slice(data), out),
            Precision::Q8 => {
                let (q, d) = data.split_at(TILE * self.shape.head / 4);
                let (q, d): (&[i8], &[u16]) = (bytemuck::cast_slice(q), bytemuck::cast_slice(d));
                for (row, (q, out)) in q.chunks_exact(TILE).zip(out.chunks_exact_mut(TILE)).enumerate() {
                    for ((q, d), out) in q.iter().zip(&d[row / 32 * TILE..]).zip(out) {
                        *out = f32::from(*q) * f16_to_f32(*d);
                    }
                }
            }
        }
    }

    /// One head's values of a tile: `[TILE][head]`.
    pub fn values(&self, level: Level, layer: usize, tile: u32, head: usize, out: &mut [f32]) {
        let at = self.at(layer, tile, head, true);
        let data = &self.data[at..at + self.shape.words()];
        match self.shape.precision {
            Precision::F32 => out.copy_from_slice(bytemuck::cast_slice(data)),
            Precision::F16 => dense::decode(level, Dense::F16, bytemuck::cast_slice(data), out),
            Precision::Q8 => {
                let (q, d) = data.split_at(TILE * self.shape.head / 4);
                let (q, d): (&[i8], &[u16]) = (bytemuck::cast_slice(q), bytemuck::cast_slice(d));
                for ((q, d), out) in q.chunks_exact(32).zip(d).zip(out.chunks_exact_mut(32)) {
                    let d = f16_to_f32(*d);
                    for (q, out) in q.iter().zip(out) {
                        *out = f32::from(*q) * d;
                    }
                }
            }
        }
    }
}

/// The nearest finite 16-bit float.
fn finite(x: f32) -> u16 {
    f32_to_f16(x.clamp(-65_504.0, 65_504.0))
}

/// The f16 scale of 32 numbers, and what they are multiplied with before rounding.
fn scale(x: &[f32]) -> (u16, f32) {
    let top = x.iter().fold(0f32, |m, v| m.max(v.abs()));
    let d = finite(top / 127.0);
    let exact = f16_to_f32(d);
    (d, if exact > 0.0 { 1.0 / exact } else { 0.0 })
}

fn round(x: f32) -> i8 {
    x.round_ties_even().clamp(-127.0, 127.0) as i8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_comes_back_rounded_and_in_place() {
        for (precision, error) in [(Precision::F32, 0.0), (Precision::F16, 5e-4), (Precision::Q8, 5e-3)] {
            let shape = Shape { precision, layers: 2, heads: 3, head: 64 };
            let mut pool = Pool::new(shape, 4).unwrap();
            let tiles: Vec<u32> = (0..3).map(|_| pool.take().unwrap()).collect();
            let row = |p: usize, s: usize| -> Vec<f32> {
                (0..192).map(|i| ((p * 31 + i * 7 + s) % 101) as f32 / 50.0 - 1.0).collect()
            };
            for layer in 0..2 {
                for p in 0..150 {
                    pool.store(layer, &tiles, p, &row(p, layer), &row(p, layer + 5));
                }
            }
            let (mut k, mut v) = (vec![0.0; 64 * TILE], vec![0.0; 64 * TILE]);
            for layer in 0..2 {
                for p in 0..150 {
                    for h in 0..3 {
                        pool.keys(Level::PORTABLE, layer, tiles[p / TILE], h, &mut k);
                        pool.values(Level::PORTABLE, layer, tiles[p / TILE], h, &mut v);
                        for d in 0..64 {
                            assert!((k[d * TILE + p % TILE] - row(p, layer)[h * 64 + d]).abs() <= error);
                            assert!((v[p % TILE * 64 + d] - row(p, layer + 5)[h * 64 + d]).abs() <= error);
                        }
                    }
                }
            }
            assert_eq!(pool.free(), 1);
            pool.give(&mut tiles.clone());
            assert_eq!(pool.free(), 4);
        }
        let narrow = Shape { precision: Precision::Q8, layers: 1, heads: 1, head: 16 };
        assert!(Pool::new(narrow, 1).unwrap_err().to_string().contains("multiple of 32"));
    }

    #[test]
    fn overflow_is_kept_finite() {
        let mut pool =
            Pool::new(Shape { precision: Precision::F16, layers: 1, heads: 1, head: 2 }, 1).unwrap();
        let tile = pool.take().unwrap();
        pool.store(0, &[tile], 0, &[1e9, -1e9], &[1e9, 0.0]);
        let mut v = vec![0.0; 2 * TILE];
        pool.values(Level::PORTABLE, 0, tile, 0, &mut v);
        assert_eq!(v[0], 65_504.0);
    }
}
