//! What the worlds call a product: GGUF tensor names, PEFT module paths, and the words of a command line.
//!
//! ```text
//! blk.3.attn_q.weight      model.layers.3.self_attn.q_proj     q      attn
//! blk.3.ffn_gate.weight    model.layers.3.mlp.gate_proj        gate   mlp
//! output.weight            lm_head                             head   head
//! blk.3.attn_norm.weight   model.layers.3.input_layernorm      attn_norm   norms
//! token_embd.weight        model.embed_tokens                  tokens      tokens
//! front                    (the root of the tree)              front       front
//! ```
//! These are all places of a program ([`Program::places`]); its products are those that are also [`Site`]s.
//!
//! A head that shares the embedding table multiplies with `token_embd.weight`, which names its site. In adapter files
//! it is `output.weight` all the same: there `token_embd.weight` means a layer around the lookup.
//!
//! # Rows of queries and keys
//! Architectures whose neighbouring columns turn together ([`Pairs::Adjacent`]: `llama`) keep the rows of q and k in
//! another order than the model they were converted from, head by head, with d columns a head:
//!
//! ```text
//! row h·d + j·d/2 + i there   =   row h·d + 2i + j in GGUF        j in 0..2, i in 0..d/2
//! ```
//! so the rows of B of a PEFT file move likewise, and so do the keys of a prefix (see prefix).

use super::effect::Key;
use crate::model::program::{Program, Spot};
use crate::ops::Site;
use onlay_kernels::rope::Pairs;
use std::collections::HashMap;

/// One kind of product.
#[derive(Debug)]
struct Word {
    /// In GGUF, inside `blk.N.` (the head: at the root).
    gguf: &'static str,
    /// In the module tree, inside `model.layers.N.` (the head: at the root).
    module: &'static str,
    /// On the command line.
    short: &'static str,
    /// The group it belongs to.
    group: &'static str,
}

const HEAD: Word = Word { gguf: "output", module: "lm_head", short: "head", group: "head" };
const TABLE: Word =
    Word { gguf: "token_embd", module: "model.embed_tokens", short: "tokens", group: "tokens" };
const FRONT: Word = Word { gguf: "front", module: "", short: "front", group: "front" };
const LAST_NORM: Word =
    Word { gguf: "output_norm", module: "model.norm", short: "output_norm", group: "norms" };

/// The vectors that are norms' weights, the last excepted.
static NORMS: &[Word] = &[
    Word { gguf: "attn_norm", module: "input_layernorm", short: "attn_norm", group: "norms" },
    Word { gguf: "ffn_norm", module: "post_attention_layernorm", short: "ffn_norm", group: "norms" },
    Word { gguf: "attn_q_norm", module: "self_attn.q_norm", short: "q_norm", group: "norms" },
    Word { gguf: "attn_k_norm", module: "self_attn.k_norm", short: "k_norm", group: "norms" },
];

/// The same for llama, qwen2 and qwen3.
static WORDS: &[Word] = &[
    Word { gguf: "attn_q", module: "self_attn.q_proj", short: "q", group: "attn" },
    Word { gguf: "attn_k", module: "self_attn.k_proj", short: "k", group: "attn" },
    Word { gguf: "attn_v", module: "self_attn.v_proj", short: "v", group: "attn" },
    Word { gguf: "attn_output", module: "self_attn.o_proj", short: "o", group: "attn" },
    Word { gguf: "ffn_gate", module: "mlp.gate_proj", short: "gate", group: "mlp" },
    Word { gguf: "ffn_up", module: "mlp.up_proj", short: "up", group: "mlp" },
    Word { gguf: "ffn_down", module: "mlp.down_proj", short: "down", group: "mlp" },
    HEAD,
];

/// How one place is called.
#[derive(Debug)]
struct Name {
    /// In adapter files, `.weight` included.
    gguf: String,
    /// The tensor that the program multiplies with.
    tensor: String,
    /// The module path.
    module: Option<String>,
    layer: Option<usize>,
    word: Option<&'static Word>,
    /// Where rows move: in how many heads. 0 where they stay.
    heads: usize,
}

/// The root of the module tree in PEFT's files.
pub(super) const ROOT: &str = "base_model.model.";

/// Columns of a head, where rows of q and k lie in another order in GGUF; 0 where they do not.
pub(super) fn moving_head(program: &Program) -> usize {
    let head = program.attention.head;
    if program.turning.pairs == Pairs::Adjacent && head % 2 == 0 { head } else { 0 }
}

/// The row there of row `i`, with such heads.
pub(super) fn moved(head: usize, i: usize) -> usize {
    if head == 0 {
        return i;
    }
    let (at, j, k) = (i / head, i % head / (head / 2), i % (head / 2));
    at * head + 2 * k + j
}

/// The names of a program's places.
#[derive(Debug)]
pub struct Names {
    places: Vec<Name>,
    sites: usize,
    by_gguf: HashMap<String, usize>,
    by_module: HashMap<String, usize>,
    /// Columns of a head.
    head: usize,
}

impl Names {
    /// The names of this program's places.
    pub fn of(program: &Program) -> Names {
        let attention = program.attention;
        let moves = moving_head(program) > 0;
        let name = |i: usize| {
            let (tensor, spot) = (program.place_name(i), program.spot(i));
            let is_head = i == program.head.site.0 as usize;
            let inside = tensor.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
            let layer = inside.and_then(|(n, _)| n.parse().ok());
            let local = inside.map_or(tensor, |(_, local)| local);
            let local = local.strip_suffix(".weight").unwrap_or(local);
            let word = match spot {
                Spot::Product if is_head => Some(&HEAD),
                Spot::Product => WORDS.iter().find(|w| w.gguf == local),
                Spot::Vector if local == LAST_NORM.gguf => Some(&LAST_NORM),
                Spot::Vector => NORMS.iter().find(|w| w.gguf == local),
                Spot::Table => Some(&TABLE),
                Spot::Front => Some(&FRONT),
            };
            Name {
                gguf: if is_head { format!("{}.weight", HEAD.gguf) } else { tensor.to_owned() },
                tensor: tensor.to_owned(),
                module: word.map(|w| match layer {
                    Some(n) => format!("model.layers.{n}.{}", w.module),
                    None => w.module.into(),
                }),
                layer,
                word,
                heads: match local {
                    "attn_q" if moves => attention.heads,
                    "attn_k" if moves => attention.key_heads,
                    _ => 0,
                },
            }
        };
        let places: Vec<Name> = (0..program.places()).map(name).collect();
        let number = |name: fn(&Name) -> Option<&String>| {
            let all = places.iter().enumerate();
            all.filter_map(|(i, n)| Some((name(n)?.clone(), i))).collect()
        };
        let (by_gguf, by_module) = (number(|n| Some(&n.gguf)), number(|n| n.module.as_ref()));
        Names { places, sites: program.sites.len(), by_gguf, by_module, head: attention.head }
    }

    fn name(&self, place: impl Into<usize>) -> &Name {
        &self.places[place.into()]
    }

    /// All places.
    pub fn places(&self) -> std::ops::Range<usize> {
        0..self.places.len()
    }

    /// All products.
    pub fn sites(&self) -> impl Iterator<Item = Site> + use<> {
        (0..self.sites as u32).map(Site)
    }

    /// The name in GGUF adapter files, without `.lora_a` and the like.
    pub fn gguf(&self, place: impl Into<usize>) -> &str {
        &self.name(place).gguf
    }

    /// Whether the place is a head that multiplies with the embedding table.
    pub fn tied(&self, place: impl Into<usize>) -> bool {
        let name = self.name(place);
        name.gguf != name.tensor
    }

    /// The place of a name in a GGUF adapter file.
    pub fn from_gguf(&self, name: &str) -> Option<usize> {
        self.by_gguf.get(name).copied()
    }

    /// The module path, without `base_model.model.`; `None` for what has no counterpart there.
    pub fn module(&self, place: impl Into<usize>) -> Option<&str> {
        self.name(place).module.as_deref()
    }

    /// The name of a tensor in PEFT's files: what stands in front of a sequence is outside the module tree.
    pub(super) fn peft(&self, place: impl Into<usize>, key: &Key) -> Option<String> {
        let module = self.module(place)?;
        let root = if module.is_empty() { "" } else { ROOT };
        Some(format!("{root}{module}{}", key.peft))
    }

    /// The last part of the module path, which all layers share.
    pub fn last(&self, place: impl Into<usize>) -> Option<&'static str> {
        self.name(place).word.and_then(|w| w.module.rsplit('.').next())
    }

    /// The place of a module path.
    pub fn from_module(&self, path: &str) -> Option<usize> {
        self.by_module.get(path).copied()
    }

    /// The layer it lies in; `None` for what is outside them.
    pub fn layer(&self, place: impl Into<usize>) -> Option<usize> {
        self.name(place).layer
    }

    /// Whether rows of the place lie in another order in GGUF than in the converted model.
    pub(super) fn moves(&self, place: impl Into<usize>) -> bool {
        self.name(place).heads != 0
    }

    /// The row, as GGUF keeps it, of row `i` of the converted model.
    pub fn row(&self, place: impl Into<usize>, i: usize) -> usize {
        if self.name(place).heads == 0 {
            return i;
        }
        moved(self.head, i)
    }

    /// Every way a place can be asked for, in parts between points; the longest ones hold all others as their ends. There
    /// are none for vectors that are no norms.
    pub(super) fn spellings(&self, place: impl Into<usize>) -> Vec<String> {
        let place = place.into();
        let Name { gguf, tensor, module, layer, word, .. } = self.name(place);
        if place >= self.sites && word.is_none() {
            return vec![];
        }
        let bare = |name: &str| name.strip_suffix(".weight").unwrap_or(name).to_owned();
        let mut all = vec![bare(gguf), bare(tensor)];
        all.extend(module.iter().filter(|m| !m.is_empty()).map(|m| format!("base_model.model.{m}")));
        for word in word.iter().flat_map(|w| [w.short, w.group]) {
            match layer {
                Some(n) => all.extend([format!("blk.{n}.{word}"), format!("layers.{n}.{word}")]),
                None => all.push(word.into()),
            }
        }
        if let Some(n) = layer.filter(|_| place < self.sites) {
            all.extend([format!("blk.{n}.all"), format!("layers.{n}.all")]);
        }
        all
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::program::{Attention, Builder, Sizes, Turning};

    /// Two layers of q, k, gate, and a head.
    pub fn program(pairs: Pairs, tied: bool) -> Program {
        let attention = Attention { heads: 2, key_heads: 1, head: 4 };
        let turning = Turning { pairs, frequencies: vec![1.0, 0.5] };
        let sizes = Sizes { width: 12, vocabulary: 20, context: 16, attention, turning };
        let present = |name: &str| !tied && name == "output.weight";
        let mut b = Builder::new(sizes, &present);
        for layer in 0..2 {
            b.segment(format!("blk.{layer}"));
            let x = b.residual();
            b.linears(x, [("attn_q", 8, "q"), ("attn_k", 4, "k"), ("ffn_gate", 6, "gate")]);
            b.end(x, x);
        }
        b.logits("output_norm", "output", 1e-5).unwrap()
    }

    #[test]
    fn names_go_there_and_back() {
        let names = Names::of(&program(Pairs::Adjacent, false));
        let modules: Vec<_> = names.sites().map(|s| names.module(s).unwrap()).collect();
        assert_eq!(modules[0], "model.layers.0.self_attn.q_proj");
        assert_eq!(modules[5], "model.layers.1.mlp.gate_proj");
        assert_eq!(modules[6], "lm_head");
        for site in names.sites() {
            assert_eq!(names.from_gguf(names.gguf(site)), Some(site.into()));
            assert_eq!(names.from_module(names.module(site).unwrap()), Some(site.into()));
        }
        assert_eq!(names.from_gguf("blk.2.attn_q.weight"), None);
        assert_eq!((names.last(Site(4)), names.layer(Site(4))), (Some("k_proj"), Some(1)));
    }

    #[test]
    fn a_tied_head_is_the_output_in_files() {
        let names = Names::of(&program(Pairs::Halves, true));
        let head = names.from_gguf("output.weight").unwrap();
        assert!(names.tied(head) && !names.tied(Site(0)));
        let table = names.from_gguf("token_embd.weight").unwrap();
        assert_eq!((names.module(table), names.tied(table)), (Some("model.embed_tokens"), false));
        assert!(names.spellings(head).contains(&"token_embd".to_owned()));
    }

    #[test]
    fn rows_of_queries_and_keys_move_where_neighbours_turn() {
        let moved = Names::of(&program(Pairs::Adjacent, false));
        let rows = |names: &Names, site, n| (0..n).map(|i| names.row(Site(site), i)).collect::<Vec<_>>();
        assert_eq!(rows(&moved, 0, 8), [0, 2, 1, 3, 4, 6, 5, 7]);
        assert_eq!(rows(&moved, 1, 4), [0, 2, 1, 3]);
        assert_eq!(rows(&moved, 2, 6), [0, 1, 2, 3, 4, 5]);
        assert_eq!(rows(&Names::of(&program(Pairs::Halves, false)), 0, 4), [0, 1, 2, 3]);
    }
}
