//! One adapter: a layer and where it comes from, immutable, opened only over the base it fits.

use super::layer::{Layer, Part};
use super::manifest::{Hash, Manifest, template_hash, tokenizer_hash};
use super::methods::Method;
use super::{gguf, peft};
use crate::error::{Error, Findings, Kind, Place, Result};
use crate::model::Model;
use crate::model::program::Program;
use crate::tensor::Identity;
use onlay_kernels::Level;
use sha2::{Digest, Sha256};
use std::fmt;
use std::path::Path;

/// Something a caller may want to refuse, and need not.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// The file says nothing about its base: only the shapes were compared.
    NoManifest,
    /// Trained on other weights of the same shape: another quantization of the base, or another model like it.
    OtherWeights {
        /// The base's name when it was trained.
        trained_on: Option<String>,
    },
    /// Trained with another tokenizer.
    OtherTokenizer,
    /// Trained with another chat template.
    OtherTemplate,
    /// A layer around a head that shares the embedding table: llama.cpp has no place for it and refuses the file.
    TiedHead,
}

impl Warning {
    /// The same as a refusal.
    pub fn refuse(self) -> Error {
        Error::new(Kind::Mismatch, self.to_string())
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::NoManifest => {
                f.write_str("the adapter does not say which base it was trained on; its shapes fit this one")
            }
            Warning::OtherWeights { trained_on: Some(name) } => write!(
                f,
                "the adapter was trained on other weights of the same shape ({name}: another quantization, or another model)"
            ),
            Warning::OtherWeights { trained_on: None } => f.write_str(
                "the adapter was trained on other weights of the same shape (another quantization, or another model)",
            ),
            Warning::OtherTokenizer => f.write_str("the adapter was trained with another tokenizer"),
            Warning::OtherTemplate => f.write_str("the adapter was trained with another chat template"),
            Warning::TiedHead => f.write_str(
                "the layer reaches a head that shares the embedding table; llama.cpp cannot load such a file",
            ),
        }
    }
}

/// What a reader found.
pub(super) struct Found {
    pub name: String,
    pub lora: Layer,
    pub manifest: Manifest,
    pub warnings: Vec<Warning>,
}

/// Holds a manifest against the model: what does not fit at all goes to `wrong`.
pub(super) fn judge(manifest: &Manifest, model: &Model, wrong: &mut Findings) -> Vec<Warning> {
    let Some(trained) = manifest.base else { return vec![Warning::NoManifest] };
    let mut warnings = Vec::new();
    let (found, metadata) = (model.weights().identity(), model.weights().metadata());
    let tokenizer = manifest.tokenizer.is_some() && manifest.tokenizer != tokenizer_hash(metadata);
    let template = manifest.template.is_some() && manifest.template != template_hash(metadata);
    if trained.shape == found.shape {
        if trained.exact != found.exact {
            warnings.push(Warning::OtherWeights { trained_on: manifest.base_name.clone() });
        }
        warnings.extend(tokenizer.then_some(Warning::OtherTokenizer));
        warnings.extend(template.then_some(Warning::OtherTemplate));
        return warnings;
    }
    let short = |hash: &Hash| Identity::hex(hash)[..16].to_owned();
    let of = Manifest::of(model).base_name.unwrap_or_default();
    let was = manifest.base_name.as_deref().unwrap_or("a base without a name");
    let mut differ = |key: &str, expected: String, found: String| {
        let error = Error::expected(Kind::Mismatch, "base", expected, found);
        wrong.push(error.at(Place::Key(key.into())));
    };
    let (expected, found) = (short(&trained.shape), short(&found.shape));
    differ("onlay.base.shape", format!("{was} (shape {expected})"), format!("{of} (shape {found})"));
    if tokenizer {
        differ("onlay.tokenizer", "the same tokenizer".into(), "another".into());
    }
    if template {
        differ("onlay.template", "the same chat template".into(), "another".into());
    }
    warnings
}

/// One version of a layer: its numbers never change, and its id stands for them.
///
/// The id is SHA-256 over, for every site with a part, in byte order of names (a string is its length as `u64`, then its
/// bytes; numbers are little-endian):
///
/// ```text
/// "onlay adapter 1", n, then n × { name, u64 r, u64 inputs, u64 outputs, f32 s, A [r][inputs], B transposed [r][outputs] }
/// ```
/// for LoRA. Other methods begin with "onlay adapter 2" and the method's name; their numbers are those of
/// [`Layer::params`], in front of which stands what else the part's effect must know (`Part::more` unless all 0, then a
/// word: (IA)³ says "outputs" or "inputs").
pub struct Adapter {
    name: String,
    lora: Layer,
    manifest: Manifest,
    id: Hash,
}

/// Without the numbers.
impl fmt::Debug for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (id, parts) = (Identity::hex(&self.id), self.parts().iter().flatten().count());
        write!(f, "Adapter({}, {}, {parts} parts, {} bytes)", self.name, &id[..12], self.bytes())
    }
}

impl Adapter {
    /// An adapter from a layer of this program, for example the one that was just trained ([`Layer::copy`]).
    ///
    /// # Errors
    /// Everything about the layer that does not fit the program; `Numeric` for numbers that are not finite.
    pub fn new(name: &str, lora: Layer, manifest: Manifest, program: &Program) -> Result<Adapter> {
        let mut wrong = Findings::default();
        let lora = lora.published();
        Part::fit(lora.parts(), program, &mut wrong);
        for (i, part) in lora.parts().iter().enumerate().take(program.places()) {
            let at = || Place::Tensor(program.place_name(i).into());
            let unscaled = |p: &Part| p.rules().scaled() && (!p.scale.is_finite() || p.scale == 0.0);
            let unranked = |p: &Part| p.rules().most_rank(p) > 0 && p.rank == 0;
            if let Some(part) = part.filter(|p| unscaled(p) || unranked(p)) {
                let expected = "a rank above 0, a finite scale other than 0";
                wrong.push(Error::expected(Kind::Argument, "layer", expected, format!("{part:?}")).at(at()));
            }
            if let Some(bad) = lora.params().read(i).iter().find(|v| !v.is_finite()) {
                wrong.push(Error::expected(Kind::Numeric, "numbers of the layer", "finite", bad).at(at()));
            }
        }
        for (i, part) in lora.parts().iter().enumerate().take(program.places()) {
            let Some(part) = part else { continue };
            if let Some(error) = part.rules().unsound(program, part, &lora.params().read(i)) {
                wrong.push(error.at(Place::Tensor(program.place_name(i).into())));
            }
        }
        if !lora.settled() {
            let text = "what follows from the layer's numbers is not known: settle it first";
            wrong.push(Error::new(Kind::Argument, text));
        }
        if lora.is_empty() {
            wrong.push(Error::expected(Kind::Argument, "parts of the layer", "at least 1", 0));
        }
        wrong.refuse("the layer is no adapter of this base")?;
        // what only training needs is dropped
        let lora = lora.published();
        let id = identify(&lora, program);
        Ok(Adapter { name: name.into(), lora, manifest, id })
    }

    /// Opens a GGUF adapter file or a PEFT directory over this model.
    ///
    /// Everything is checked against the program: shapes, ranks, products that do not exist, missing halves, numbers
    /// that are not finite; and the base named in the manifest against the model. What is fine but worth saying comes
    /// back with the adapter; [`Warning::refuse`] turns it into an error.
    ///
    /// # Errors
    /// `Io`, `Format`, `Unsupported`, `Mismatch`, `Numeric`: everything that is wrong, at once.
    pub fn open(path: impl AsRef<Path>, model: &Model) -> Result<(Adapter, Vec<Warning>)> {
        let path = path.as_ref();
        let loose = path.extension().is_some_and(|e| e == "safetensors" || e == "json");
        if loose && path.is_file() {
            let expected = "a GGUF file, or the directory of a PEFT adapter";
            let error = Error::expected(Kind::Argument, "adapter", expected, "one file of such a directory");
            return Err(error.in_file(path));
        }
        let found = if path.is_dir() { peft::read(path, model) } else { gguf::read(path, model) };
        let Found { name, lora, manifest, warnings } = found.map_err(|e| e.in_file(path))?;
        let level = Level::chosen().unwrap_or(Level::PORTABLE);
        lora.settle(model, level, &mut |n, f| (0..n).for_each(f));
        let adapter = Adapter::new(&name, lora, manifest, model.program()).map_err(|e| e.in_file(path))?;
        Ok((adapter, warnings))
    }

    /// Writes it as a GGUF file, as a whole or not at all. `model` is the base it was opened or made for.
    ///
    /// # Errors
    /// As [`write_atomically`](crate::format::files::write_atomically); `Mismatch` if it does not fit the model.
    pub fn write_gguf(&self, path: impl AsRef<Path>, model: &Model, overwrite: bool) -> Result<Vec<Warning>> {
        self.fits(model.program())?;
        gguf::write(self, model, path.as_ref(), overwrite)
    }

    /// Writes it as a PEFT directory. `model` is the base it was opened or made for.
    ///
    /// # Errors
    /// As [`write_atomically`](crate::format::files::write_atomically); `Mismatch` if it does not fit the model;
    /// `Unsupported` for a product that PEFT has no name for.
    pub fn write_peft(&self, directory: impl AsRef<Path>, model: &Model, overwrite: bool) -> Result<()> {
        self.fits(model.program())?;
        peft::write(self, model, directory.as_ref(), overwrite)
    }

    /// Checks that it was made for a program like this.
    ///
    /// # Errors
    /// `Mismatch`: everything that differs.
    pub fn fits(&self, program: &Program) -> Result<()> {
        let mut wrong = Findings::default();
        Part::fit(self.lora.parts(), program, &mut wrong);
        wrong.refuse("the adapter does not fit this base")
    }

    /// Its name, for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What identifies its numbers.
    pub fn id(&self) -> &Hash {
        &self.id
    }

    /// Where it comes from.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The kind of layer.
    pub fn method(&self) -> &'static Method {
        self.lora.method()
    }

    /// What is at each place of the program.
    pub fn parts(&self) -> &[Option<Part>] {
        self.lora.parts()
    }

    /// The numbers of a place, as [`Layer::params`].
    pub fn numbers(&self, place: impl Into<usize>) -> impl std::ops::Deref<Target = Vec<f32>> + '_ {
        self.lora.params().read(place.into())
    }

    /// A layer with the same numbers, to go on learning.
    pub fn to_lora(&self) -> Layer {
        self.lora.copy()
    }

    /// Bytes of its numbers.
    pub fn bytes(&self) -> u64 {
        let fixed: usize = self.lora.fixed().iter().map(|f| f.len()).sum();
        4 * (self.lora.len() + fixed) as u64
    }

    pub(super) fn lora(&self) -> &Layer {
        &self.lora
    }
}

fn identify(lora: &Layer, program: &Program) -> Hash {
    fn text(hash: &mut Sha256, text: &str) {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    let with = lora.parts().iter().enumerate();
    let mut parts: Vec<_> = with.filter_map(|(i, p)| Some((program.place_name(i), i, p.as_ref()?))).collect();
    parts.sort_unstable_by_key(|(name, ..)| *name);
    let mut hash = Sha256::new();
    let method = lora.method();
    if method.name == "lora" {
        text(&mut hash, "onlay adapter 1");
    } else {
        text(&mut hash, "onlay adapter 2");
        text(&mut hash, method.name);
        lora.fixed().into_iter().flatten().for_each(|v| hash.update(v.to_le_bytes()));
    }
    hash.update((parts.len() as u64).to_le_bytes());
    for (name, i, part) in parts {
        text(&mut hash, name);
        [part.rank, part.inputs, part.outputs].iter().for_each(|n| hash.update((*n as u64).to_le_bytes()));
        hash.update(part.scale.to_le_bytes());
        if part.more != [0; 4] {
            part.more.iter().for_each(|n| hash.update((*n as u64).to_le_bytes()));
        }
        if !part.rules().tag().is_empty() {
            text(&mut hash, part.rules().tag());
        }
        lora.params().read(i).iter().for_each(|v| hash.update(v.to_le_bytes()));
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::super::names::tests::program;
    use super::*;
    use onlay_kernels::rope::Pairs;

    fn layer(scale: f32) -> Layer {
        let program = program(Pairs::Adjacent, false);
        let mut parts = vec![None; program.sites.len()];
        for (i, rank) in [(3, 2), (6, 1)] {
            let site = &program.sites[i];
            parts[i] = Some(Part::lora(rank, site.inputs, site.outputs, scale));
        }
        let layer = Layer::new(parts);
        for i in [3, 6] {
            layer.params().get(i).iter_mut().enumerate().for_each(|(j, v)| *v = (i * 100 + j) as f32 / 8.0);
        }
        layer
    }

    #[test]
    fn the_id_is_that_of_the_numbers_and_shapes() {
        let program = program(Pairs::Adjacent, false);
        let id = |layer: Layer, name: &str| {
            Identity::hex(Adapter::new(name, layer, Manifest::default(), &program).unwrap().id())
        };
        // A known answer, made with Python's hashlib: the id of an adapter made today is its id tomorrow.
        assert_eq!(id(layer(2.0), "a"), "2e2393bc1def1edf1fac7e7f146248ba82fa4ce0f359c52053ea78f4a3dd6536");
        assert_eq!(id(layer(2.0), "a"), id(layer(2.0), "b"));
        assert_ne!(id(layer(2.0), "a"), id(layer(1.0), "a"));
        let other = layer(2.0);
        other.params().get(3)[5] += 1.0;
        assert_ne!(id(layer(2.0), "a"), id(other, "a"));
        let mut learning = layer(2.0);
        learning.learn(4, 0.0, 0).unwrap();
        assert_eq!(id(layer(2.0), "a"), id(learning, "a"));
    }

    #[test]
    fn layers_that_are_no_adapters() {
        let program = program(Pairs::Adjacent, false);
        let refused = |layer| Adapter::new("a", layer, Manifest::default(), &program).unwrap_err();
        assert_eq!(refused(layer(f32::NAN)).findings().len(), 2);
        assert_eq!(refused(layer(0.0)).kind(), Kind::Argument);
        assert_eq!(refused(Layer::new(vec![])).kind(), Kind::Mismatch);
        let text = format!("{:?}", Adapter::new("a", layer(1.0), Manifest::default(), &program).unwrap());
        assert!(text.len() < 80 && text.contains("2 parts"), "{text}");
    }

    #[test]
    fn warnings_can_be_refusals() {
        for warning in [
            Warning::NoManifest,
            Warning::OtherWeights { trained_on: Some("x Q8_0".into()) },
            Warning::OtherWeights { trained_on: None },
            Warning::OtherTokenizer,
            Warning::OtherTemplate,
            Warning::TiedHead,
        ] {
            let text = warning.to_string();
            assert_eq!((warning.clone().refuse().kind(), warning.refuse().text()), (Kind::Mismatch, &*text));
        }
    }
}
