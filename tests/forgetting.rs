//! Forgetting is what the logits say it is.

#[path = "support/runs.rs"]
mod runs;
mod support;
use onlay::eval::{forgetting, within};
use onlay::train::Flow;
use runs::*;
use support::*;

#[test]
fn loss_and_divergence_are_those_of_the_logits() {
    let model = open(vectors().join(MODEL));
    let layer = layer(&model, "", 2);
    let mut rng = onlay::rng::Rng::new(7);
    for i in 0..layer.params().len() {
        layer.params().get(i).iter_mut().for_each(|v| *v += 0.05 * (rng.uniform() - 0.5));
    }
    let rows = data(&model).train.examples;
    let (mut n, mut before, mut after, mut kl) = (0, 0.0, 0.0, 0.0);
    let mut one = runner(&model, options(1));
    let log_softmax = |z: &[f32]| -> Vec<f64> {
        let m = z.iter().copied().fold(f32::MIN, f32::max);
        let sum = f64::from(m) + z.iter().map(|v| f64::from(v - m).exp()).sum::<f64>().ln();
        z.iter().map(|v| f64::from(*v) - sum).collect()
    };
    for row in &rows {
        let fed = &row.tokens[..row.rows()];
        let (base, worn) = (logits(&mut one, fed, None), logits(&mut one, fed, Some(&layer)));
        for (t, (b, w)) in base.iter().zip(&worn).enumerate().filter(|(t, _)| row.trained[t + 1]) {
            let (b, w, target) = (log_softmax(b), log_softmax(w), row.tokens[t + 1] as usize);
            n += 1;
            before -= b[target];
            after -= w[target];
            kl += b.iter().zip(&w).map(|(b, w)| b.exp() * (b - w)).sum::<f64>();
        }
    }
    let mut found = Vec::new();
    for threads in [1, 2] {
        let mut runner = runner(&model, options(threads));
        let f = forgetting(&mut runner, &rows, &layer, &mut |_, _| Flow::Go).unwrap();
        println!("{f:?}");
        let close = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-5;
        assert_eq!(f.tokens, n);
        assert!(close(f.before, before / n as f64) && close(f.after, after / n as f64), "{f:?}");
        assert!((f.kl - kl / n as f64).abs() < 1e-6 && f.kl > 1e-3, "{f:?} {}", kl / n as f64);
        found.push(f);
    }
    assert_eq!(found[0], found[1]);

    // A layer that is not there changes nothing; half a layer changes less.
    let zero = runs::layer(&model, "", 2);
    let mut runner = runner(&model, options(2));
    let nothing = forgetting(&mut runner, &rows, &zero, &mut |_, _| Flow::Go).unwrap();
    assert_eq!((nothing.before, nothing.kl), (nothing.after, 0.0));
    let limit = found[0].kl / 3.0;
    let mut scaled = |s: f32| {
        let part =
            |p: &Option<onlay::adapter::Part>| p.map(|p| onlay::adapter::Part { scale: p.scale * s, ..p });
        let less = onlay::adapter::Lora::new(layer.parts().iter().map(part).collect());
        (0..layer.params().len()).for_each(|i| less.params().get(i).copy_from_slice(&layer.params().read(i)));
        forgetting(&mut runner, &rows, &less, &mut |_, _| Flow::Go)
    };
    let (scale, kept) = within(limit, &mut scaled).unwrap().unwrap();
    println!("scale {scale}: {kept:?}");
    assert!(kept.kl <= limit && scale < 1.0 && scaled(scale + 1.0 / 256.0).unwrap().kl > limit);
    let empty = forgetting(&mut runner, &[], &zero, &mut |_, _| Flow::Go).unwrap_err();
    assert_eq!(empty.kind(), onlay::Kind::Data);
    let stopped = forgetting(&mut runner, &rows, &zero, &mut |_, _| Flow::Stop).unwrap_err();
    assert_eq!(stopped.kind(), onlay::Kind::Cancelled);
}
