//! Layers that are low-rank pairs at products and nothing else, as devices take them ([`Pairs`]).

use super::effect::Effect;
use super::layer::Layer;
use super::worn::Worn;
use crate::ops::{Dropped, Pair, Pairs, Site};
use std::sync::atomic::{AtomicU64, Ordering};

/// Names the numbers of a layer: no two layers of a process have the same, nor one before and after it changed.
#[derive(Debug)]
pub(super) struct Stamp {
    layer: u64,
    version: AtomicU64,
}

impl Default for Stamp {
    fn default() -> Self {
        static LAYERS: AtomicU64 = AtomicU64::new(0);
        Stamp { layer: LAYERS.fetch_add(1, Ordering::Relaxed), version: AtomicU64::new(0) }
    }
}

impl Stamp {
    /// The numbers have changed.
    pub fn renew(&self) {
        self.version.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> [u64; 2] {
        [self.layer, self.version.load(Ordering::Relaxed)]
    }
}

/// Whether a layer is nothing but pairs.
pub(super) fn only_pairs(layer: &Layer) -> bool {
    layer.parts().iter().flatten().all(|p| p.effect == Effect::Lora)
}

/// The pair of a layer at a site, doing `weight` times what it does.
fn take_pair(layer: &Layer, site: Site, weight: f32, take: &mut dyn FnMut(Pair<'_>)) {
    let Some(part) = layer.part(site) else { return };
    let numbers = layer.params().read(site.into());
    let (a, b) = numbers.split_at(part.rank * part.inputs);
    take(Pair { a, b, rank: part.rank, learned: part.rank - part.frozen, scale: part.scale * weight });
}

impl Pairs for Layer {
    fn stamp(&self) -> [u64; 2] {
        self.stamp.read()
    }

    fn pairs_at(&self, site: Site, take: &mut dyn FnMut(Pair<'_>)) {
        take_pair(self, site, 1.0, take);
    }

    fn dropped(&self) -> Option<Dropped<'_>> {
        let (rate, seed) = self.dropping();
        self.names().map(|names| Dropped { rate, seed, names })
    }
}

impl Pairs for Worn {
    fn stamp(&self) -> [u64; 2] {
        self.stamp.read()
    }

    fn pairs_at(&self, site: Site, take: &mut dyn FnMut(Pair<'_>)) {
        for (adapter, weight) in self.stack() {
            take_pair(adapter.lora(), site, *weight, take);
        }
    }

    fn dropped(&self) -> Option<Dropped<'_>> {
        None
    }
}
