//! A stack of adapters as one LoRA of a chosen rank, and what that loses.
//!
//! ```text
//! ΔW = Σᵢ wᵢ·(W′ᵢ − W)       B·A = the r largest singular triplets of ΔW       error = ‖ΔW − B·A‖ / ‖ΔW‖
//! ```
//! matrix by matrix, all members of the team at one each, so memory holds as many differences as there are threads. A stack
//! that is worn is exact; this is for those who want one small file. With the ranks together as r nothing is lost but rounding.

use super::layer::{Layer, Part};
use super::merge::{Changed, bias_of, unfoldable};
use super::svd;
use super::worn::Worn;
use crate::error::{Error, Findings, Kind, Place, Result};
use crate::model::Model;
use crate::ops::Site;
use crate::tensor::{Slots, Team};
use onlay_kernels::Level;

/// What became of the difference at one product.
#[derive(Clone, Debug, PartialEq)]
pub struct Combined {
    /// The product's matrix.
    pub tensor: String,
    /// ‖ΔW‖²
    pub squares: f64,
    /// ‖ΔW − B·A‖²
    pub lost: f64,
}

impl Combined {
    /// ‖ΔW − B·A‖ / ‖ΔW‖
    pub fn error(&self) -> f64 {
        if self.lost == 0.0 { 0.0 } else { (self.lost / self.squares).sqrt() }
    }
}

/// A LoRA of rank `rank`, or as much as a matrix has, that comes nearest to `worn` in every matrix. `watch(done, all)` is
/// told how many matrices are done, and may stop it with an error.
///
/// # Errors
/// `Argument` for nothing worn or a rank of 0; `Unsupported` for adapters that are no change of a matrix; what `watch`
/// returns.
pub fn combine(
    model: &Model,
    worn: &Worn,
    rank: usize,
    threads: usize,
    level: Level,
    watch: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<(Layer, Vec<Combined>)> {
    let (program, mut wrong) = (model.program(), Findings::default());
    if rank == 0 {
        wrong.push(Error::expected(Kind::Argument, "rank", "at least 1", 0));
    }
    let mut parts = vec![None; program.sites.len()];
    for i in 0..program.places() {
        let here = |a: &super::Adapter| a.parts().get(i).is_some_and(Option::is_some);
        if !worn.stack().iter().any(|(a, _)| here(a)) {
            continue;
        }
        let place = || Place::Tensor(program.place_name(i).into());
        let Some(site) = program.sites.get(i) else {
            wrong.push(Error::new(Kind::Unsupported, "what is here is no change of a matrix").at(place()));
            continue;
        };
        let at = Site(i as u32);
        if let Some(why) = unfoldable(worn.stack(), at) {
            wrong.push(Error::new(Kind::Unsupported, why).at(place()));
        } else if worn.of_bias(at).1.is_some()
            || (worn.of_bias(at).0.is_some() && bias_of(model, &site.name).is_some())
        {
            let text = "what is done to its bias, or added to it, no pair can do";
            wrong.push(Error::new(Kind::Unsupported, text).at(place()));
        }
        let most = rank.min(site.inputs).min(site.outputs);
        parts[i] = Some(Part::lora(most, site.inputs, site.outputs, 1.0));
    }
    if parts.iter().all(Option::is_none) {
        wrong.push(Error::expected(Kind::Argument, "adapters to combine", "at least 1", 0));
    }
    wrong.refuse("the adapters cannot be combined")?;
    let layer = Layer::new(parts);
    let here: Vec<usize> = (0..program.sites.len()).filter(|i| layer.parts()[*i].is_some()).collect();
    let (mut team, mut found) = (Team::new(threads)?, Vec::with_capacity(here.len()));
    for some in here.chunks(team.len()) {
        let done = Slots::new(some.len(), |_| (0.0, 0.0));
        team.each(some.len(), |_, at| *done.get(at) = one(model, worn, &layer, level, some[at]));
        for (at, i) in some.iter().enumerate() {
            let (squares, lost) = *done.read(at);
            if !squares.is_finite() {
                let error = Error::expected(Kind::Numeric, "squares of the difference", "finite", squares);
                return Err(error.at(Place::Tensor(program.place_name(*i).into())));
            }
            found.push(Combined { tensor: program.place_name(*i).into(), squares, lost });
        }
        watch(found.len() as u64, here.len() as u64)?;
    }
    Ok((layer, found))
}

/// Sets a pair to what comes nearest to the difference at a site: the squares of that, and of what is lost.
fn one(model: &Model, worn: &Worn, layer: &Layer, level: Level, i: usize) -> (f64, f64) {
    let site = Site(i as u32);
    let part = layer.parts()[i].expect("asked only where there is one");
    let Part { rank: r, inputs: k, outputs: n, .. } = part;
    let from = model.bound().matrix(model.program().matrix_at(site));
    let changed = Changed { site, from, gains: worn.gains_at(site), stack: worn.stack() };
    let (mut difference, mut base) = (vec![0.0; n * k], vec![0.0; n * k]);
    changed.rows(level, 0, (&mut difference, &mut base), &mut Vec::new());
    difference.iter_mut().zip(&base).for_each(|(d, b)| *d -= b);
    let top = svd::largest(&difference, n, k, r, 0);
    let mut numbers = layer.params().get(i);
    let (a, b) = numbers.split_at_mut(r * k);
    for (j, value) in top.values.iter().enumerate() {
        let root = value.sqrt();
        a[j * k..(j + 1) * k].iter_mut().zip(&top.right[j]).for_each(|(to, v)| *to = (root * v) as f32);
        b[j * n..(j + 1) * n].iter_mut().zip(&top.left[j]).for_each(|(to, v)| *to = (root * v) as f32);
    }
    let square = |all: &[f32]| all.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
    let squares = square(&difference);
    // measured on the numbers that are kept, not derived from singular values
    for (o, row) in difference.chunks_exact_mut(k).enumerate() {
        for j in 0..r {
            let by = b[j * n + o];
            row.iter_mut().zip(&a[j * k..(j + 1) * k]).for_each(|(d, a)| *d -= by * a);
        }
    }
    (squares, square(&difference))
}
