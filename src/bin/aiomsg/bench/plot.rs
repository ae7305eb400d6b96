//! The picture of a benchmark, as SVG: rates as bars with a dot for each repeat, times as the curve of their
//! distribution, a thin line for each repeat. Text and shapes only, so that any browser shows it and a diff tells what
//! changed. Knows numbers and names, nothing of sockets.

use std::fmt::Write as _;

use hdrhistogram::Histogram;

use crate::terminal::grouped;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 460.0;
/// Around the drawing: room for the heads, the numbers and the names.
const LEFT: f64 = 90.0;
const RIGHT: f64 = 46.0;
const TOP: f64 = 78.0;
const BOTTOM: f64 = 62.0;
const COLOURS: [&str; 6] = ["#3a6ea5", "#c8553d", "#4f8a3f", "#8a5fa8", "#b58900", "#2a9d8f"];
/// The curve's right end: one in so many is slower.
const RARE: f64 = 100_000.0;
/// Points of a curve.
const POINTS: u32 = 240;

/// A picture in the making.
pub(super) struct Chart {
    title: String,
    about: String,
    bars: Vec<(String, Vec<f64>)>,
    curves: Vec<(String, Vec<Histogram<u64>>)>,
}

impl Chart {
    pub(super) fn new(title: &str, about: &str) -> Self {
        Self { title: title.into(), about: about.into(), bars: Vec::new(), curves: Vec::new() }
    }

    /// Deliveries a second, of each repeat.
    pub(super) fn bar(&mut self, name: &str, repeats: Vec<f64>) {
        self.bars.push((name.into(), repeats));
    }

    /// Times in nanoseconds, of each repeat.
    pub(super) fn curve(&mut self, name: &str, repeats: &[Histogram<u64>]) {
        self.curves.push((name.into(), repeats.to_vec()));
    }

    /// The picture.
    pub(super) fn svg(&self) -> String {
        let mut drawing = Drawing::new(&self.title, &self.about);
        if self.curves.is_empty() {
            self.draw_bars(&mut drawing);
        } else {
            self.draw_curves(&mut drawing);
        }
        drawing.finish()
    }

    fn draw_bars(&self, drawing: &mut Drawing) {
        let most = self.bars.iter().flat_map(|(_, repeats)| repeats).fold(0.0, |one: f64, &other| one.max(other));
        let step = round_step(most / 5.0);
        let top = (most / step).ceil().max(1.0) * step;
        let y = |value: f64| HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM);
        for tick in 0..=(top / step).round() as u32 {
            let value = f64::from(tick) * step;
            drawing.level(y(value), &short(value));
        }
        let slot = (WIDTH - LEFT - RIGHT) / self.bars.len() as f64;
        let width = (slot * 0.5).min(90.0);
        for (index, (name, repeats)) in self.bars.iter().enumerate() {
            let centre = LEFT + (index as f64 + 0.5) * slot;
            let [median, ..] = super::spread(repeats.iter().copied());
            let (colour, at) = (COLOURS[0], y(median));
            drawing.put(&format!(
                r#"<rect x="{:.1}" y="{at:.1}" width="{width:.1}" height="{:.1}" fill="{colour}" fill-opacity="0.75"/>"#,
                centre - width / 2.0,
                HEIGHT - BOTTOM - at
            ));
            for (number, &value) in repeats.iter().enumerate() {
                // Side by side in the order of measurement: a drift shows.
                let x = centre + width * (number as f64 + 0.5) / repeats.len() as f64 - width / 2.0;
                drawing.put(&format!(r##"<circle cx="{x:.1}" cy="{:.1}" r="2.5" fill="#222"/>"##, y(value)));
            }
            let highest = repeats.iter().fold(median, |one, &other| one.max(other));
            drawing.text(centre, y(highest) - 8.0, "middle", &grouped(median as u64));
            drawing.text(centre, HEIGHT - BOTTOM + 20.0, "middle", name);
        }
        drawing.text(LEFT, TOP - 14.0, "start", "deliveries per second; dots: each repeat");
    }

    fn draw_curves(&self, drawing: &mut Drawing) {
        let all = || self.curves.iter().flat_map(|(_, repeats)| repeats);
        let us = |ns: u64| (ns as f64 / 1e3).max(0.1);
        let least = us(all().map(Histogram::min).min().unwrap_or(1)).log10().floor();
        let most = us(all().map(Histogram::max).max().unwrap_or(1)).log10().ceil().max(least + 1.0);
        let y = |value: f64| HEIGHT - BOTTOM - (value.log10() - least) / (most - least) * (HEIGHT - TOP - BOTTOM);
        // Even steps for 0, 90, 99, 99.9 ... per cent.
        let x = |one_in: f64| LEFT + one_in.log10() / RARE.log10() * (WIDTH - LEFT - RIGHT);
        for power in least as i32..=most as i32 {
            let value = 10_f64.powi(power);
            drawing.level(y(value), &time_name(value));
        }
        for (quantile, one_in) in [
            ("least", 1.0),
            ("p50", 2.0),
            ("p90", 10.0),
            ("p99", 1e2),
            ("p99.9", 1e3),
            ("p99.99", 1e4),
            ("p99.999", 1e5),
        ] {
            let at = x(one_in);
            drawing.put(&format!(
                r##"<line x1="{at:.1}" y1="{TOP}" x2="{at:.1}" y2="{:.1}" stroke="#e4e4e4"/>"##,
                HEIGHT - BOTTOM
            ));
            drawing.text(at, HEIGHT - BOTTOM + 20.0, "middle", quantile);
        }
        for (index, (name, repeats)) in self.curves.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            let mut draw = |times_ns: &Histogram<u64>, width: f64, opacity: f64| {
                let points = (0..=POINTS).map(|point| RARE.powf(f64::from(point) / f64::from(POINTS)));
                // Beyond one in so many as there are samples there is nothing to draw.
                let points = points.take_while(|&one_in| one_in <= times_ns.len() as f64).map(|one_in| {
                    let value = us(times_ns.value_at_quantile(1.0 - 1.0 / one_in));
                    format!("{:.1},{:.1}", x(one_in), y(value))
                });
                drawing.put(&format!(
                    r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-opacity="{opacity}"/>"#,
                    points.collect::<Vec<_>>().join(" ")
                ));
            };
            let mut together: Option<Histogram<u64>> = None;
            for times_ns in repeats {
                draw(times_ns, 1.0, 0.3);
                // All have the same bounds, so that one can be added to another.
                match &mut together {
                    Some(sum) => drop(sum.add(times_ns)),
                    None => together = Some(times_ns.clone()),
                }
            }
            if let Some(together) = together {
                draw(&together, 2.5, 1.0);
            }
            // Below the curves, which rise to the right.
            let at = HEIGHT - BOTTOM - 14.0 - (self.curves.len() - 1 - index) as f64 * 18.0;
            drawing.put(&format!(
                r#"<rect x="{:.1}" y="{:.1}" width="14" height="4" fill="{colour}"/>"#,
                WIDTH - RIGHT - 240.0,
                at - 6.0
            ));
            drawing.text(WIDTH - RIGHT - 218.0, at, "start", name);
        }
        drawing.text(
            LEFT,
            TOP - 14.0,
            "start",
            "time of a message (logarithmic); thick: all repeats together, thin: each",
        );
    }
}

/// A page with the picture and the table.
pub(super) fn page(title: &str, svg: &str, table: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>aiomsg bench: {title}</title>\n\
         <body style=\"margin:2em;font-family:sans-serif\">\n{svg}\n<pre>{}</pre>\n</body></html>\n",
        escaped(table),
        title = escaped(title)
    )
}

struct Drawing(String);

impl Drawing {
    fn new(title: &str, about: &str) -> Self {
        let mut drawing = Self(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"12\" fill=\"#222\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        ));
        drawing.put(&format!(r#"<text x="{LEFT}" y="26" font-size="17">aiomsg bench: {}</text>"#, escaped(title)));
        drawing.put(&format!(r##"<text x="{LEFT}" y="45" fill="#666">{}</text>"##, escaped(about)));
        drawing
    }

    fn put(&mut self, element: &str) {
        // Writing to a String does not fail.
        let _ = writeln!(self.0, "{element}");
    }

    fn text(&mut self, x: f64, y: f64, anchor: &str, text: &str) {
        self.put(&format!(r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{}</text>"#, escaped(text)));
    }

    /// A line across, with its number.
    fn level(&mut self, y: f64, name: &str) {
        let right = WIDTH - RIGHT;
        self.put(&format!(r##"<line x1="{LEFT}" y1="{y:.1}" x2="{right}" y2="{y:.1}" stroke="#ddd"/>"##));
        self.text(LEFT - 8.0, y + 4.0, "end", name);
    }

    fn finish(self) -> String {
        self.0 + "</svg>\n"
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// 1, 2 or 5 times a power of ten, not less than `step`.
fn round_step(step: f64) -> f64 {
    let power = 10_f64.powf(step.max(1e-9).log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|digit| digit * power).into_iter().find(|&round| round >= step * 0.999).unwrap_or(power)
}

/// A number for an axis.
fn short(value: f64) -> String {
    match value {
        1e6.. => format!("{} M", value / 1e6),
        1e3.. => format!("{} k", value / 1e3),
        _ => format!("{value}"),
    }
}

/// Microseconds, in the unit that suits them.
fn time_name(us: f64) -> String {
    match us {
        1e6.. => format!("{} s", us / 1e6),
        1e3.. => format!("{} ms", us / 1e3),
        _ => format!("{us} us"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_round_numbers() {
        for (step, round) in [(0.9, 1.0), (1.0, 1.0), (1.2, 2.0), (3.0, 5.0), (700_000.0, 1e6)] {
            assert!((round_step(step) - round).abs() < round * 1e-9, "{step}: {}", round_step(step));
        }
        assert_eq!((short(2_500_000.0), short(400.0), time_name(1e3)), ("2.5 M".into(), "400".into(), "1 ms".into()));
    }

    #[test]
    fn a_picture_holds_each_row_and_each_repeat() {
        let mut chart = Chart::new("a < b", "about");
        chart.bar("64 B", vec![1.0, 3.0, 2.0]);
        chart.bar("1 KiB", vec![4.0, 4.0, 4.0]);
        let svg = chart.svg();
        assert_eq!((svg.matches("<circle").count(), svg.matches("fill-opacity").count()), (6, 2));
        assert!(svg.contains("a &lt; b") && svg.ends_with("</svg>\n"));
        let mut times = Histogram::new_with_bounds(1, 1_000_000, 3).unwrap();
        (1..1000).for_each(|ns| times.record(ns * 100).unwrap());
        let mut chart = Chart::new("latency", "about");
        chart.curve("there and back", &[times.clone(), times]);
        assert_eq!(chart.svg().matches("<polyline").count(), 3);
        assert!(!chart.svg().contains("NaN"));
    }
}
