//! Curves as inline SVG.

use super::report::escaped;

/// The most points that a line keeps; neighbours are averaged.
const MOST: usize = 500;

/// Room for labels: left, right, top, bottom.
const ROOM: [f64; 4] = [52.0, 10.0, 8.0, 22.0];

/// One line.
pub struct Series {
    pub name: &'static str,
    /// Its colour in the style sheet.
    pub class: &'static str,
    pub points: Vec<(f64, f64)>,
    /// Whether single points are drawn and can be asked for their value.
    pub dots: bool,
}

/// Lines over the steps of a run.
pub struct Chart {
    title: &'static str,
    unit: &'static str,
    series: Vec<Series>,
    /// The step whose layer is left, if it is not the last.
    mark: Option<f64>,
}

impl Chart {
    pub fn new(title: &'static str, unit: &'static str, mark: Option<f64>) -> Self {
        Chart { title, unit, series: Vec::new(), mark }
    }

    /// Adds a line; points that are not numbers are left out, and a line without points is none.
    pub fn add(&mut self, mut series: Series) {
        series.points.retain(|(_, y)| y.is_finite());
        if series.points.len() > MOST {
            let per = series.points.len().div_ceil(MOST);
            let mean = |part: &[(f64, f64)]| {
                let n = part.len() as f64;
                (part.iter().map(|p| p.0).sum::<f64>() / n, part.iter().map(|p| p.1).sum::<f64>() / n)
            };
            series.points = series.points.chunks(per).map(mean).collect();
        }
        if !series.points.is_empty() {
            self.series.push(series);
        }
    }

    /// The figure, as a drawing `width` by `height` that fills the room there is.
    pub fn svg(&self, width: u32, height: u32) -> String {
        let all = || self.series.iter().flat_map(|s| &s.points);
        if all().next().is_none() {
            return String::new();
        }
        let [left, right, top, bottom] = ROOM;
        let (w, h) = (f64::from(width), f64::from(height));
        let most = |f: fn(&(f64, f64)) -> f64| all().map(f).fold(f64::NEG_INFINITY, f64::max);
        let least = |f: fn(&(f64, f64)) -> f64| all().map(f).fold(f64::INFINITY, f64::min);
        let (x0, x1) = (least(|p| p.0), most(|p| p.0).max(least(|p| p.0) + 1.0));
        let (low, high) = (least(|p| p.1), most(|p| p.1));
        // from zero where that wastes little room
        let low = if low >= 0.0 && low < 0.6 * high { 0.0 } else { low };
        let ys = ticks(low, if high > low { high } else { low + low.abs().max(1e-9) }, h / 55.0);
        let (y0, y1) = (ys[0], ys[ys.len() - 1]);
        let x = |v: f64| left + (v - x0) / (x1 - x0) * (w - left - right);
        let y = |v: f64| h - bottom - (v - y0) / (y1 - y0) * (h - top - bottom);
        let mut svg =
            format!("<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\">\n", self.title);
        for v in &ys {
            let (at, label) = (y(*v), label(*v));
            svg += &format!(
                "<line class=\"grid\" x1=\"{left}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>\n",
                w - right,
                left - 8.0,
                at + 4.0
            );
        }
        for v in ticks(x0, x1, w / 90.0).iter().filter(|v| **v >= x0 && **v <= x1 && v.fract() == 0.0) {
            let anchor = if x(*v) > w - 30.0 { "end" } else { "middle" };
            svg +=
                &format!("<text x=\"{:.1}\" y=\"{}\" text-anchor=\"{anchor}\">{v}</text>\n", x(*v), h - 5.0);
        }
        if let Some(step) = self.mark {
            let at = x(step);
            svg += &format!(
                "<line class=\"mark\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{top}\" y2=\"{}\"/>\
                 <text x=\"{:.1}\" y=\"{}\">kept: step {step}</text>\n",
                h - bottom,
                at + 5.0,
                top + 11.0
            );
        }
        for s in &self.series {
            let line: Vec<_> = s.points.iter().map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1))).collect();
            svg += &format!("<polyline class=\"{}\" points=\"{}\"/>\n", s.class, line.join(" "));
            for p in s.points.iter().filter(|_| s.dots) {
                let (cx, cy) = (x(p.0), y(p.1));
                svg += &format!(
                    "<circle class=\"{}\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"4\"><title>step {}: {:.4}</title></circle>\n",
                    s.class, p.0, p.1
                );
            }
        }
        let mut caption = escaped(self.title);
        if !self.unit.is_empty() {
            caption += &format!(" <span>{}</span>", escaped(self.unit));
        }
        for s in self.series.iter().filter(|s| !s.name.is_empty()) {
            caption += &format!(" <span><i class=\"{}\"></i>{}</span>", s.class, escaped(s.name));
        }
        format!("<figure><figcaption>{caption}</figcaption>\n{svg}</svg></figure>\n")
    }
}

/// About `n` round numbers that reach from below `low` to above `high`.
fn ticks(low: f64, high: f64, n: f64) -> Vec<f64> {
    let raw = (high - low) / n.max(1.0);
    let unit = 10f64.powf(raw.log10().floor());
    let step = unit * [1.0, 2.0, 5.0, 10.0].into_iter().find(|f| f * unit >= 0.999 * raw).unwrap_or(10.0);
    let (first, last) = ((low / step).floor() as i64, (high / step).ceil() as i64);
    (first..=last.max(first + 1)).map(|i| i as f64 * step).collect()
}

/// A number with the digits that tell it from its neighbours.
fn label(v: f64) -> String {
    match v.abs() {
        0.0 => "0".into(),
        a if !(9e-5..1e5).contains(&a) => format!("{v:.1e}"),
        a => {
            let digits = (3 - a.log10().floor() as i32).clamp(0, 7) as usize;
            let text = format!("{v:.digits$}");
            if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').into() } else { text }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_numbers_around_all_points() {
        assert_eq!(ticks(0.0, 4.3, 5.0), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(ticks(3.0, 3.2, 2.0).len(), 3);
        assert_eq!(
            [0.0, 2e-4, 0.5, 1.25, 60.0, 1e6].map(label),
            ["0", "0.0002", "0.5", "1.25", "60", "1.0e6"]
        );
    }

    #[test]
    fn lines_of_any_length_and_none() {
        let of = |points: Vec<(f64, f64)>| {
            let mut chart = Chart::new("a", "", Some(1.0));
            chart.add(Series { name: "s", class: "main", points, dots: true });
            chart.svg(400, 200)
        };
        assert_eq!(of(vec![(1.0, f64::NAN)]), "");
        for points in [
            vec![(1.0, 0.0)],
            vec![(1.0, 5.0), (2.0, 5.0)],
            (0..10_000).map(|i| (f64::from(i), 1e-9)).collect(),
        ] {
            let svg = of(points);
            assert!(svg.contains("<polyline") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            assert!(svg.len() < 200_000);
        }
    }
}
