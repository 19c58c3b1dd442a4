//! A page that tells a run: one HTML file with everything in it, no scripts, nothing loaded from elsewhere.

use super::chart::{Chart, Series};
use super::watch::{Point, Watch};
use super::{Args, Done};
use crate::cli::show::{count, obeyed};
use crate::cli::{options, samples::Sample, terminal};
use anyhow::Result;
use onlay::adapter::Part;
use onlay::error::Error;
use onlay::format::files::write_atomically;
use onlay::model::Model;
use onlay::train::{Ending, Summary};
use std::io::Write;
use std::path::Path;

const STYLE: &str = include_str!("report.css");

/// Text as HTML shows it: what a browser would read as markup, and what turns the direction of text, written out.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' => out.push('\n'),
            c if obeyed(c) => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}

/// Writes the page, as a whole or not at all.
pub fn write(
    path: &Path,
    args: &Args,
    model: &Model,
    done: &Done,
    samples: &[Sample],
    watch: &Watch,
) -> Result<()> {
    let html = page(args, model, done, samples, watch)?;
    // Whether something may be replaced was found out before the run.
    write_atomically(path, true, |out| {
        out.write_all(html.as_bytes()).map_err(|e| Error::io("write", path, e))
    })?;
    Ok(())
}

fn page(args: &Args, model: &Model, done: &Done, samples: &[Sample], watch: &Watch) -> Result<String> {
    let Done { summary, adapter, bytes, .. } = done;
    let name = escaped(adapter.name());
    let base = escaped(&model.weights().path().display().to_string());
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{name}: a layer over {base}</title>\n<style>\n{STYLE}</style></head><body><main>\n\
         <header><p class=\"over\">Training report</p><h1>{name}</h1><p>a layer over <code>{base}</code></p></header>\n"
    );
    html += &verdict(args, done);
    html += "<section class=\"cards\">\n";
    for (what, value, more) in cards(done) {
        html += &format!(
            "<div class=\"card\"><p class=\"what\">{what}</p><p class=\"value\">{value}</p><p class=\"more\">{more}</p></div>\n"
        );
    }
    html += "</section>\n";
    html += &curves(summary, &watch.points);
    html += &answers(samples);
    let parameters: usize = adapter.parts().iter().flatten().map(Part::len).sum();
    let mut rows = vec![("learned from".to_owned(), args.data.display().to_string())];
    rows.extend(watch.rows.iter().filter_map(|l| {
        let (name, facts) = l.split_once(": ")?;
        Some((format!("{name} rows"), facts.to_owned()))
    }));
    rows.extend(watch.answers.iter().filter_map(|l| {
        let (name, counts) = l.split_once(": ")?;
        Some((name.to_owned(), counts.to_owned()))
    }));
    rows.push(("evaluation rows also trained on".into(), watch.overlap.to_string()));
    if args.drop_overlap {
        rows.push(("training rows left out for that".into(), done.dropped.to_string()));
    }
    rows.extend(args.eval_data.iter().map(|p| ("evaluated on".into(), p.display().to_string())));
    if let (Some(path), Some(c)) = (&args.control, &done.control) {
        rows.push((
            "control rows".into(),
            format!("{}, {} tokens", path.display(), count(c.kept.tokens as u64)),
        ));
    }
    html += &table("Data", &rows);
    // What is told elsewhere on the page, or once for every matrix.
    let shown = |name: &str| !name.starts_with("layer.") && name != "onlay";
    let terms = summary.terms.iter().filter(|(name, _)| shown(name));
    html += &table("Recipe", &terms.map(|(n, v)| (n.to_owned(), v.to_owned())).collect::<Vec<_>>());
    let layer = [
        ("file".to_owned(), format!("{} ({})", args.output.display(), terminal::bytes(*bytes))),
        ("id".into(), onlay::tensor::Identity::hex(adapter.id())),
        ("numbers".into(), count(parameters as u64)),
        ("matrices".into(), adapter.parts().iter().flatten().count().to_string()),
        ("of step".into(), format!("{} of {} taken", summary.layer, summary.steps)),
    ];
    html += &table("Layer", &layer);
    let environment = [
        ("onlay".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("instructions".into(), options::level()?.name().to_owned()),
        ("threads".into(), args.machine.count().to_string()),
        ("system".into(), format!("{} {}", std::env::consts::OS, std::env::consts::ARCH)),
        ("peak memory".into(), summary.peak_memory.map_or("unknown".into(), terminal::bytes)),
    ];
    html += &table("Environment", &environment);
    html += "<footer>The same rows, recipe and seed give the same layer to the bit, at any number of threads.</footer>\n";
    html += "</main></body></html>\n";
    Ok(html)
}

/// One sentence on what came out.
fn verdict(args: &Args, done: &Done) -> String {
    let s = &done.summary;
    let mut text = match &s.ending {
        Ending::Done => format!("All {} steps were taken.", count(s.steps)),
        Ending::EarlyStop => {
            format!("Ended early after {} steps: evaluations brought nothing better.", count(s.steps))
        }
        Ending::Halted(why) => format!("A guard ended the run. {why}."),
    };
    if s.layer != s.steps {
        let why = if args.keep_best { "the best on held-out rows" } else { "the last good one" };
        text += &format!(" The layer is that of step {}, {why}.", count(s.layer));
    }
    if let Some(c) = done.control.as_ref().filter(|c| c.scale < 1.0) {
        text += &format!(" It is scaled to {} of itself, to forget no more than was agreed.", c.scale);
    }
    let class = if matches!(s.ending, Ending::Halted(_)) { "verdict bad" } else { "verdict" };
    format!("<p class=\"{class}\">{}</p>\n", escaped(&text))
}

/// The figures that matter most: what, value, and a remark.
fn cards(done: &Done) -> Vec<(&'static str, String, String)> {
    let s = &done.summary;
    let arrow = |a: f64, b: f64| format!("{a:.3} <span class=\"to\">→</span> {b:.3}");
    let mut cards = Vec::new();
    if let Some((before, after)) = s.before_and_after() {
        let after = done.control.as_ref().and_then(|c| c.held_out).unwrap_or(after);
        let times = (before - after).exp();
        let more = format!("each held-out token {times:.2} times as likely");
        cards.push(("held-out loss", arrow(before, after), more));
    }
    cards.push(("training loss", arrow(s.first_loss, s.last_loss), "first step, last step".into()));
    if let Some(c) = &done.control {
        let value = format!("{:.4}", c.kept.kl);
        let more = format!("nats a token from the base; loss {:.3} → {:.3}", c.kept.before, c.kept.after);
        cards.push(("forgetting", value, more));
    }
    let speed = s.rows as f64 / s.seconds.max(1e-9);
    cards.push(("time", terminal::duration(s.seconds), format!("{speed:.0} tokens a second")));
    let epochs = format!("{:.2} epochs, {} trained tokens", s.epochs, count(s.trained));
    cards.push(("steps", count(s.steps), epochs));
    cards
}

fn curves(summary: &Summary, points: &[Point]) -> String {
    if points.is_empty() {
        return String::new();
    }
    let of = |f: fn(&Point) -> f64| points.iter().map(|p| (p.step as f64, f(p))).collect::<Vec<_>>();
    let losses = of(|p| p.loss);
    // the mean of the steps around each, a twentieth of the run together
    let reach = losses.len() / 40 + 1;
    let around = |i: usize| {
        let near = &losses[i.saturating_sub(reach)..losses.len().min(i + reach + 1)];
        near.iter().map(|p| p.1).sum::<f64>() / near.len() as f64
    };
    let smooth = losses.iter().enumerate().map(|(i, p)| (p.0, around(i))).collect();
    let evaluations: Vec<_> = summary.evaluations.iter().map(|e| (e.step as f64, e.loss)).collect();
    let mark = (summary.layer != summary.steps).then_some(summary.layer as f64);
    let mut loss = Chart::new("Loss", "nats a trained token", mark);
    loss.add(Series { name: "step", class: "raw", points: losses, dots: false });
    loss.add(Series { name: "mean around it", class: "main", points: smooth, dots: false });
    loss.add(Series { name: "held out", class: "eval", points: evaluations, dots: true });
    let mut rate = Chart::new("Learning rate", "", None);
    rate.add(Series { name: "", class: "main", points: of(|p| p.rate), dots: false });
    let mut norm = Chart::new("Gradient norm", "before clipping", None);
    norm.add(Series { name: "", class: "main", points: of(|p| p.norm), dots: false });
    let first = points[0].step;
    let missing = match first {
        1 => String::new(),
        n => format!(
            "<p class=\"note\">The run was continued at step {n}; steps before that are in no log.</p>\n"
        ),
    };
    format!(
        "<section>\n{}<div class=\"pair\">{}{}</div>\n{missing}</section>\n",
        loss.svg(920, 300),
        rate.svg(450, 200),
        norm.svg(450, 200)
    )
}

fn answers(samples: &[Sample]) -> String {
    if samples.is_empty() {
        return String::new();
    }
    let mut html = String::from("<section><h2>Answers before and after</h2>\n");
    for s in samples {
        html += &format!(
            "<div class=\"sample\"><p class=\"prompt\">{}</p><div class=\"pair\"><div><p class=\"what\">without the layer</p>\
             <p class=\"said\">{}</p></div><div class=\"with\"><p class=\"what\">with it</p><p class=\"said\">{}</p></div></div></div>\n",
            escaped(&s.prompt),
            escaped(s.without.trim()),
            escaped(s.with.trim())
        );
    }
    html + "</section>\n"
}

fn table(title: &str, rows: &[(String, String)]) -> String {
    let row = |(name, value): &(String, String)| {
        format!("<tr><th scope=\"row\">{}</th><td>{}</td></tr>\n", escaped(name), escaped(value))
    };
    let rows: String = rows.iter().map(row).collect();
    format!("<section><h2>{title}</h2><table>\n{rows}</table></section>\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_text_is_markup() {
        assert_eq!(
            escaped("<script>'a' & \"b\"\u{202e}\x1b\n</script>"),
            "&lt;script&gt;&#39;a&#39; &amp; &quot;b&quot;\\u{202e}\\u{1b}\n&lt;/script&gt;"
        );
    }
}
