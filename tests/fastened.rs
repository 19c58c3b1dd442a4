//! Every word that a layer has, by a layer of this test's own: its gradients against PEFT's and against differences of the
//! loss, and the same bits however many threads there are and whatever else is computed beside it.

mod support;
use onlay::backend::{Backend, Machine, Plan};
use onlay::engine::{Engine, EngineOptions};
use onlay::model::program::Program;
use onlay::model::{Model, Request, Wanted};
use onlay::ops::kv::{Pool, Precision};
use onlay::ops::{
    Attend, Backward, Base, Batch, Delta, Host, Lent, MatrixId, Site, Span, Tables, Turns, VectorId,
    base_product, product_back,
};
use onlay::rng::hash;
use onlay::tensor::{Block, Mat, MatMut, Matrix, Slots, Team};
use onlay_kernels::Level;
use onlay_kernels::rope::Pairs;
use std::ops::Range;
use std::sync::Arc;
use support::*;

/// What the numbers of a group do.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Word {
    /// u = g∘x
    Enter(Site),
    /// y = g∘z
    Follow(Site),
    /// W′
    Matrix(Site),
    Vector(VectorId),
    /// The row of a token.
    Token(u32),
    /// So many virtual tokens.
    Virtual(usize),
    /// So many positions, `[layers][keys, values][positions][width]`.
    Prefix(usize),
}

/// A layer of these words. Rows of the model are `width` numbers, keys of a layer `keys`.
struct Worn {
    words: Vec<Word>,
    numbers: Slots<Vec<f32>>,
    grads: Slots<Vec<f32>>,
    width: usize,
    keys: usize,
    vocabulary: u32,
    sites: Vec<(usize, usize)>,
}

impl Worn {
    fn new(program: &Program, parts: Vec<(Word, Vec<f32>)>) -> Worn {
        let (words, numbers): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        Worn {
            numbers: Slots::new(words.len(), |i| numbers[i].clone()),
            grads: Slots::new(words.len(), |i| vec![0.0; numbers[i].len()]),
            words,
            width: program.width,
            keys: program.attention.key_heads * program.attention.head,
            vocabulary: program.vocabulary as u32,
            sites: program.sites.iter().map(|s| (s.inputs, s.outputs)).collect(),
        }
    }

    fn find(&self, word: Word) -> Option<usize> {
        self.words.iter().position(|w| *w == word)
    }

    fn lent(&self, word: Word) -> Option<Lent<'_>> {
        self.find(word).map(|i| self.numbers.read(i))
    }

    fn add(&self, i: usize, from: usize, grad: &[f32]) {
        self.grads.get(i)[from..].iter_mut().zip(grad).for_each(|(to, g)| *to += g);
    }
}

impl Delta for Worn {
    fn enters(&self, site: Site) -> bool {
        self.find(Word::Enter(site)).is_some()
    }
    fn enter(&self, _: Level, site: Site, _: usize, x: Mat<'_>, u: &mut [f32], _: &mut Vec<f32>) {
        let g = self.lent(Word::Enter(site)).unwrap();
        for (x, u) in x.data().chunks_exact(g.len()).zip(u.chunks_exact_mut(g.len())) {
            x.iter().zip(&*g).zip(u).for_each(|((x, g), u)| *u = x * g);
        }
    }
    fn matrix(&self, site: Site) -> Option<Lent<'_>> {
        self.lent(Word::Matrix(site))
    }
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
    }
    #[rustfmt::skip]
    fn finish(&self, _: Level, _: Site, _: &[f32], _: usize, _: usize, _: &mut Block<'_>, _: Range<usize>, _: &mut Vec<f32>) {}
    fn follows(&self, site: Site) -> bool {
        self.find(Word::Follow(site)).is_some()
    }
    fn follow(&self, _: Level, site: Site, _: usize, mut y: MatMut<'_>, _: &mut Vec<f32>) {
        let g = self.lent(Word::Follow(site)).unwrap();
        for i in 0..y.rows() {
            y.row(i).iter_mut().zip(&*g).for_each(|(y, g)| *y *= g);
        }
    }
    fn vector(&self, id: VectorId) -> Option<Lent<'_>> {
        self.lent(Word::Vector(id))
    }
    fn embeds(&self) -> bool {
        self.learns_embeddings()
    }
    fn embedding(&self, token: u32, row: &mut [f32]) -> bool {
        let (numbers, at) = match token.checked_sub(self.vocabulary) {
            Some(i) => (self.lent(Word::Virtual(self.virtual_tokens())), i as usize * self.width),
            None => (self.lent(Word::Token(token)), 0),
        };
        let Some(numbers) = numbers else { return false };
        row.copy_from_slice(&numbers[at..at + self.width]);
        true
    }
    fn virtual_tokens(&self) -> usize {
        self.words.iter().map(|w| if let Word::Virtual(n) = w { *n } else { 0 }).sum()
    }
    fn prefix(&self) -> usize {
        self.words.iter().map(|w| if let Word::Prefix(n) = w { *n } else { 0 }).sum()
    }
    fn prefix_row(&self, layer: usize, position: usize, key: &mut [f32], value: &mut [f32]) {
        let (n, w) = (self.prefix(), self.keys);
        let all = self.lent(Word::Prefix(n)).unwrap();
        let at = |half: usize| ((2 * layer + half) * n + position) * w;
        key.copy_from_slice(&all[at(0)..at(0) + w]);
        value.copy_from_slice(&all[at(1)..at(1) + w]);
    }
}

impl Backward for Worn {
    fn learns(&self, site: Site) -> bool {
        [Word::Enter(site), Word::Follow(site), Word::Matrix(site)].iter().any(|w| self.find(*w).is_some())
    }
    fn backward(
        &self,
        host: &mut Host<'_>,
        site: Site,
        base: Base<'_>,
        x: Mat<'_>,
        dy: Mat<'_>,
        dx: Option<MatMut<'_>>,
    ) {
        let (inputs, outputs) = self.sites[site.0 as usize];
        let rows = x.rows();
        if let Some(i) = self.find(Word::Matrix(site)) {
            let w = self.numbers.read(i).clone();
            let mut dw = vec![0.0; w.len()];
            let mut dx = dx;
            for r in 0..rows {
                for (o, dy) in dy.row(r).iter().enumerate() {
                    let at = o * inputs..(o + 1) * inputs;
                    dw[at.clone()].iter_mut().zip(x.row(r)).for_each(|(dw, x)| *dw += dy * x);
                    if let Some(dx) = &mut dx {
                        dx.row(r).iter_mut().zip(&w[at]).for_each(|(dx, w)| *dx += dy * w);
                    }
                }
            }
            return self.add(i, 0, &dw);
        }
        let ones = |n: usize| vec![1.0; n];
        let g = self.lent(Word::Enter(site)).map_or_else(|| ones(inputs), |g| g.clone());
        let f = self.lent(Word::Follow(site)).map_or_else(|| ones(outputs), |f| f.clone());
        let mut u = x.data().to_vec();
        u.chunks_exact_mut(inputs).for_each(|u| u.iter_mut().zip(&g).for_each(|(u, g)| *u *= g));
        let mut z = vec![0.0; rows * outputs];
        base_product(host, base, Mat::new(&u, inputs), MatMut::new(&mut z, outputs));
        let mut dz = dy.data().to_vec();
        let mut df = vec![0.0; outputs];
        for (dz, z) in dz.chunks_exact_mut(outputs).zip(z.chunks_exact(outputs)) {
            dz.iter().zip(z).zip(&mut df).for_each(|((dy, z), df)| *df += dy * z);
            dz.iter_mut().zip(&f).for_each(|(dz, f)| *dz *= f);
        }
        let mut du = vec![0.0; rows * inputs];
        product_back(host, base.matrix, None, Mat::new(&dz, outputs), MatMut::new(&mut du, inputs));
        let mut dg = vec![0.0; inputs];
        for (r, du) in du.chunks_exact(inputs).enumerate() {
            du.iter().zip(x.row(r)).zip(&mut dg).for_each(|((du, x), dg)| *dg += du * x);
        }
        if let Some(mut dx) = dx {
            for (r, du) in du.chunks_exact(inputs).enumerate() {
                dx.row(r).iter_mut().zip(du).zip(&g).for_each(|((dx, du), g)| *dx += du * g);
            }
        }
        for (word, grad) in [(Word::Enter(site), dg), (Word::Follow(site), df)] {
            if let Some(i) = self.find(word) {
                self.add(i, 0, &grad);
            }
        }
    }
    fn learns_vector(&self, id: VectorId) -> bool {
        self.find(Word::Vector(id)).is_some()
    }
    fn vector_back(&self, id: VectorId, grad: &[f32]) {
        self.add(self.find(Word::Vector(id)).unwrap(), 0, grad);
    }
    fn learns_embeddings(&self) -> bool {
        self.words.iter().any(|w| matches!(w, Word::Token(_) | Word::Virtual(_)))
    }
    fn embedding_back(&self, tokens: &[u32], dy: Mat<'_>) {
        for (i, token) in tokens.iter().enumerate() {
            let (word, at) = match token.checked_sub(self.vocabulary) {
                Some(i) => (Word::Virtual(self.virtual_tokens()), i as usize * self.width),
                None => (Word::Token(*token), 0),
            };
            if let Some(part) = self.find(word) {
                self.add(part, at, dy.row(i));
            }
        }
    }
    fn learns_prefix(&self) -> bool {
        self.prefix() > 0
    }
    fn prefix_back(&self, layer: usize, keys: &[f32], values: &[f32]) {
        let i = self.find(Word::Prefix(self.prefix())).unwrap();
        let from = 2 * layer * keys.len();
        self.add(i, from, keys);
        self.add(i, from + keys.len(), values);
    }
}

struct View<'a>(&'a Model, &'a Turns);

impl Tables for View<'_> {
    fn matrix(&self, id: MatrixId) -> Matrix<'_> {
        self.0.bound().matrix(id)
    }
    fn vector(&self, id: VectorId) -> &[f32] {
        self.0.bound().vector(id)
    }
    fn turns(&self) -> &Turns {
        self.1
    }
}

/// Tokens, and which of them count.
type Row = (Vec<u32>, Vec<bool>);

/// Σ −log p of the rows' tokens, and its gradients into the layer, all rows in one pass.
fn pass(model: &Model, layer: &Worn, rows: &[Row], threads: usize) -> f64 {
    let (program, level) = (model.program(), Level::chosen().unwrap());
    (0..layer.words.len()).for_each(|i| layer.grads.get(i).fill(0.0));
    let (prefix, front) = (layer.prefix(), layer.virtual_tokens());
    let n: usize = rows.iter().map(|r| front + r.0.len() - 1).sum();
    let segments = program.segments.len();
    let plan = Plan {
        level,
        columns: program.columns(),
        frames: segments,
        back: true,
        needs: program.needs(n, threads, n, program.room(layer), &model.bound().storage()),
        kv: program.kv_shape(Precision::F32, segments),
        tiles: rows.len() * Pool::tiles_for(256),
        streams: 0,
        ends: n,
        vocabulary: program.vocabulary,
    };
    let mut machine = Machine::new(&plan, Team::new(threads).unwrap()).unwrap();
    let turns = Turns::new(program.turning.pairs, &program.turning.frequencies, 256).unwrap();
    let view = View(model, &turns);
    let mut tiles = vec![vec![]; rows.len()];
    for (tiles, row) in tiles.iter_mut().zip(rows) {
        (0..Pool::tiles_for(prefix + front + row.0.len()))
            .for_each(|_| tiles.push(machine.take_tile().unwrap()));
    }
    let (mut tokens, mut spans, mut targets) = (vec![], vec![], vec![]);
    for (row, tiles) in rows.iter().zip(&tiles) {
        let first = tokens.len();
        tokens.extend((program.vocabulary as u32..).take(front));
        tokens.extend_from_slice(&row.0[..row.0.len() - 1]);
        let rows = tokens.len() - first;
        spans.push(Span { first, rows, position: prefix, tiles, delta: Some(layer as &dyn Delta) });
        for (i, token) in row.0.iter().enumerate().filter(|(i, _)| row.1[*i] && front + i > 0) {
            targets.push((first + front + i - 1, *token as usize));
        }
    }
    let mut pieces = vec![];
    let group = program.attention.heads / program.attention.key_heads;
    Batch::cut(&spans, Attend::longest_piece(group), &mut pieces);
    let batch = Batch { tokens: &tokens, spans: &spans, pieces: &pieces };
    machine.begin(n, 0);
    machine.forward(&view, std::slice::from_ref(&program.embed), batch);
    for (i, segment) in program.segments.iter().enumerate() {
        if i > 0 {
            machine.advance(program.result, program.residual, i);
        }
        machine.forward(&view, &segment.steps, batch);
    }
    // all rows reach the end, those that do not count with a scale of 0
    let (mut tokens_after, mut scales, mut losses) = (vec![0; n], vec![0.0; n], vec![0.0; n]);
    for (row, token) in &targets {
        (tokens_after[*row], scales[*row]) = (*token as u32, 1.0);
    }
    let rows: Vec<u32> = (0..n as u32).collect();
    let end = program.end(&rows, batch);
    machine.clear_grads();
    machine.end(&view, &end);
    machine.losses(&tokens_after, Some(&scales), &mut losses).unwrap();
    machine.end_back(&view, &end, layer);
    for i in (0..segments).rev() {
        machine.begin(n, i);
        if i + 1 < segments {
            machine.descend(program.residual, program.result);
        }
        machine.backward(&view, &program.segments[i].steps, batch, None, layer);
    }
    machine.backward(&view, std::slice::from_ref(&program.embed), batch, None, layer);
    targets.iter().map(|(row, _)| losses[*row]).sum()
}

fn number(seed: u64, i: u64) -> f32 {
    (hash(seed, &[i]) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

fn drawn(seed: u64, n: usize, mean: f32, spread: f32) -> Vec<f32> {
    (0..n as u64).map(|i| mean + spread * number(seed, i)).collect()
}

fn site(program: &Program, name: &str) -> Site {
    Site(program.sites.iter().position(|s| s.name == name).unwrap_or_else(|| panic!("no {name}")) as u32)
}

/// A layer with all words at once.
fn all(model: &Model, seed: u64) -> Worn {
    let p = model.program();
    let mut parts = vec![];
    for name in ["blk.0.attn_q.weight", "blk.1.ffn_down.weight", "blk.1.attn_v.weight"] {
        let at = site(p, name);
        let s = &p.sites[at.0 as usize];
        parts.push((Word::Enter(at), drawn(seed + 1, s.inputs, 1.0, 0.3)));
        if !name.contains("attn_v") {
            parts.push((Word::Follow(at), drawn(seed + 2, s.outputs, 1.0, 0.3)));
        }
    }
    for name in ["blk.0.ffn_up.weight", "blk.1.attn_k.weight"] {
        let at = site(p, name);
        let s = &p.sites[at.0 as usize];
        parts.push((Word::Matrix(at), drawn(seed + 3, s.inputs * s.outputs, 0.0, 0.2)));
    }
    for (i, v) in p.vectors.iter().enumerate().filter(|(_, v)| v.name.contains("norm")) {
        parts.push((Word::Vector(VectorId(i as u32)), drawn(seed + 4 + i as u64, v.len, 1.0, 0.3)));
    }
    parts.push((Word::Token(7), drawn(seed + 90, p.width, 0.0, 1.0)));
    parts.push((Word::Virtual(3), drawn(seed + 91, 3 * p.width, 0.0, 1.0)));
    let keys = p.attention.key_heads * p.attention.head;
    parts.push((Word::Prefix(4), drawn(seed + 92, 2 * p.segments.len() * 4 * keys, 0.0, 1.0)));
    Worn::new(p, parts)
}

fn some_rows(seed: u64, lengths: &[usize]) -> Vec<Row> {
    let one = |(k, n): (usize, &usize)| {
        let tokens =
            (0..*n as u64).map(|i| if i % 5 == 2 { 7 } else { hash(seed + k as u64, &[i]) as u32 % 256 });
        (tokens.collect(), (0..*n).map(|i| i != 3).collect())
    };
    lengths.iter().enumerate().map(one).collect()
}

const MODELS: [&str; 2] = ["llama", "qwen3"];

#[test]
fn gradients_of_every_word_are_the_slopes_of_the_loss() {
    for name in MODELS {
        let model = open(vectors().join(name).join("F32.gguf"));
        let rows = some_rows(5, &[9, 70, 6]);
        let layer = all(&model, 100);
        pass(&model, &layer, &rows, 2);
        let grads: Vec<Vec<f32>> = (0..layer.words.len()).map(|i| layer.grads.read(i).clone()).collect();
        for (i, g) in grads.iter().enumerate() {
            // along the gradient, but not quite, by a step that changes the loss by a few hundredths
            let mut d: Vec<f64> = g
                .iter()
                .zip(0..)
                .map(|(g, k)| f64::from(*g) * (1.0 + 0.9 * f64::from(number(77, k))))
                .collect();
            let norm = d.iter().map(|d| d * d).sum::<f64>().sqrt();
            assert!(norm > 1e-2, "{name}: {:?} has a gradient of {norm}", layer.words[i]);
            d.iter_mut().for_each(|d| *d /= norm);
            let want: f64 = d.iter().zip(g).map(|(d, g)| d * f64::from(*g)).sum();
            let step = (2e-2 / want).min(2e-2);
            let before = layer.numbers.read(i).clone();
            let at = |by: f64| {
                let moved = before.iter().zip(&d).map(|(v, d)| (f64::from(*v) + by * d) as f32);
                *layer.numbers.get(i) = moved.collect();
                pass(&model, &layer, &rows, 2)
            };
            let found = (at(step) - at(-step)) / (2.0 * step);
            *layer.numbers.get(i) = before.clone();
            let off = (found / want - 1.0).abs();
            assert!(off < 1e-2, "{name}: {:?}: slope {found}, gradient {want}", layer.words[i]);
        }
    }
}

#[test]
fn gradients_have_the_same_bits_on_any_number_of_threads() {
    for name in MODELS {
        let model = open(vectors().join(name).join("F32.gguf"));
        let rows = some_rows(6, &[40, 9, 75, 30, 12]);
        let layer = all(&model, 300);
        let mut seen: Option<(u64, Vec<u32>)> = None;
        for threads in [1, 2, 3, 2] {
            let loss = pass(&model, &layer, &rows, threads);
            let bits = (0..layer.words.len()).flat_map(|i| layer.grads.read(i).clone()).map(f32::to_bits);
            let now = (loss.to_bits(), bits.collect());
            assert!(seen.as_ref().is_none_or(|s| *s == now), "{name}: {threads} threads");
            seen = Some(now);
        }
    }
}

/// Where number `d` of a head lies in the converted model.
fn column(pairs: Pairs, head: usize, d: usize) -> usize {
    match pairs {
        Pairs::Halves => d,
        Pairs::Adjacent => 2 * (d % (head / 2)) + d / (head / 2),
    }
}

#[test]
fn what_is_in_front_of_sequences_is_pefts() {
    for (name, case) in
        [("llama", "prefix"), ("qwen3", "prefix"), ("llama", "prompt"), ("llama", "prompt-masked")]
    {
        let model = open(vectors().join(name).join("F32.gguf"));
        let (p, folder) = (model.program(), vectors().join(name).join(case));
        let (file, answers) = (
            Answers::open(folder.join("adapter_model.safetensors")),
            Answers::open(folder.join("gradients.safetensors")),
        );
        let front: Vec<f32> = file.numbers("prompt_embeddings").iter().map(|v| *v as f32).collect();
        let (layers, heads, head) = (p.segments.len(), p.attention.key_heads, p.attention.head);
        // PEFT's [position][layer][key, value][head][number]; ours by number
        let mut order: Vec<usize> = (0..front.len()).collect();
        let word = if case == "prefix" {
            let n = front.len() / (2 * layers * heads * head);
            for (i, to) in order.iter_mut().enumerate() {
                let (d, h, half) = (i % head, i / head % heads, i / (head * heads) % 2);
                let (layer, position) = (i / (2 * head * heads) % layers, i / (2 * head * heads * layers));
                let d = if half == 0 { column(p.turning.pairs, head, d) } else { d };
                *to = (((2 * layer + half) * n + position) * heads + h) * head + d;
            }
            Word::Prefix(n)
        } else {
            Word::Virtual(front.len() / p.width)
        };
        let mut numbers = vec![0.0; front.len()];
        order.iter().zip(&front).for_each(|(to, v)| numbers[*to] = *v);
        let layer = Worn::new(p, vec![(word, numbers)]);
        let row = |i: usize| -> Row {
            let trained = answers.numbers(&format!("labels.{i}")).iter().map(|l| *l >= 0.0).collect();
            (answers.tokens(&format!("tokens.{i}")), trained)
        };
        let rows = [row(0), row(1)];
        let trained = answers.numbers("trained")[0];
        let loss = pass(&model, &layer, &rows, 2) / trained;
        let off = (loss - answers.numbers("loss")[0]).abs();
        assert!(off < 1e-5, "{name} {case}: loss {loss} off by {off:.1e}");
        let want = answers.numbers("prompt_embeddings");
        let got = layer.grads.read(0);
        let norm = |f: &dyn Fn(usize) -> f64| (0..want.len()).map(|i| f(i).powi(2)).sum::<f64>().sqrt();
        let off = norm(&|i| f64::from(got[order[i]]) / trained - want[i]) / norm(&|i| want[i]);
        assert!(off < 1e-4, "{name} {case}: gradients off by {off:.1e}");
        // and as it is served
        let mut runner = runner(&model, options(2));
        for (i, row) in rows.iter().enumerate() {
            let z = logits(&mut runner, &row.0, Some(&layer)).pop().unwrap();
            let want = answers.numbers(&format!("last.{i}"));
            let off = z.iter().zip(&want).map(|(z, w)| (f64::from(*z) - w).abs()).fold(0.0, f64::max);
            assert!(off < 1e-4, "{name} {case}: logits off by {off:.1e}");
        }
    }
}

fn bits(all: &[Vec<f32>]) -> Vec<Vec<u32>> {
    all.iter().map(|z| z.iter().map(|v| v.to_bits()).collect()).collect()
}

#[test]
fn a_sequence_with_all_words_is_the_same_however_it_is_computed() {
    for name in MODELS {
        let model = open(vectors().join(name).join("F32.gguf"));
        let (layer, other) = (all(&model, 500), all(&model, 900));
        let text = some_rows(8, &[90]).remove(0).0;
        let mut want = None;
        for (threads, kv) in [(1, Precision::F16), (2, Precision::F16), (3, Precision::F16)] {
            let mut runner = runner(&model, onlay::model::Options { kv, ..options(threads) });
            let whole = bits(&logits(&mut runner, &text, Some(&layer)));
            assert!(want.as_ref().is_none_or(|w| *w == whole), "{name}: {threads} threads");
            // token by token, beside a sequence with another layer and one with none
            let (mut a, mut b, mut c) = (runner.sequence(), runner.sequence(), runner.sequence());
            let mut got = vec![];
            for (i, part) in text.chunks(17).enumerate() {
                let beside = &text[i..i + 5];
                let request = |sequence, tokens, delta, wanted| Request { sequence, tokens, delta, wanted };
                let mut requests = [
                    request(&mut b, beside, Some(&other as &dyn Delta), Wanted::Last),
                    request(&mut a, part, Some(&layer as &dyn Delta), Wanted::All),
                    request(&mut c, beside, None, Wanted::All),
                ];
                let take = &mut |i: usize, _: usize, z: &mut [f32]| {
                    if i == 1 {
                        got.push(z.to_vec());
                    }
                };
                runner.step(&mut requests, take).unwrap();
            }
            assert!(bits(&got) == whole, "{name}: beside others");
            assert_eq!((a.len(), c.len()), (90, 30));
            // back to a token, and on
            a.truncate(40);
            let mut again = vec![];
            runner
                .feed(&mut a, &text[40..], Some(&layer), Wanted::All, &mut |_, z| again.push(z.to_vec()))
                .unwrap();
            assert!(bits(&again)[..] == whole[40..], "{name}: again");
            want = Some(whole);
            // what it began with stays in front of it
            let refused =
                runner.feed(&mut a, &text[..1], None, Wanted::Last, &mut |_, _| {}).unwrap_err().to_string();
            let expected =
                "expected 4 of a prefix and 3 virtual tokens, found 0 of a prefix and 0 virtual tokens";
            assert!(refused.contains(expected), "{refused}");
            assert_eq!(a.len(), 90);
        }
    }
}

#[test]
fn a_session_counts_what_is_in_front_and_begins_anew_with_another_layer() {
    let model = open(vectors().join("llama/F32.gguf"));
    let layer: Arc<dyn Delta> = Arc::new(all(&model, 500));
    let text = some_rows(8, &[30]).remove(0).0;
    let room = model.program().room(&*layer);
    let options = EngineOptions {
        threads: Some(2),
        context: 30,
        rows: 8,
        kv: Precision::F32,
        room,
        ..Default::default()
    };
    let mut engine = Engine::new(model.clone(), &options).unwrap();
    let last = |engine: &mut Engine, session: &mut onlay::engine::Session| {
        let mut all = vec![];
        engine.advance(&mut [session], &mut |_, z| all.push(z.to_vec())).unwrap();
        bits(&all)
    };
    let mut runner = runner(&model, support::options(1));
    let mut session = engine.session();
    engine.append(&mut session, &text[..10]).unwrap();
    let bare = last(&mut engine, &mut session);
    assert!(bare[..] == bits(&logits(&mut runner, &text[..10], None))[9..]);
    session.wear(Some(layer.clone()));
    let worn = last(&mut engine, &mut session);
    let want = bits(&logits(&mut runner, &text, Some(&*layer)));
    assert!(worn[..] == want[9..10] && worn != bare);
    for i in 10..30 {
        engine.append(&mut session, &text[i..=i]).unwrap();
        assert!(last(&mut engine, &mut session)[..] == want[i..=i]);
    }
    let full = engine.append(&mut session, &text[..1]).unwrap_err().to_string();
    assert!(full.contains("at most 30"), "{full}");
    session.truncate(10);
    session.wear(None);
    assert!(last(&mut engine, &mut session) == bare);
}
