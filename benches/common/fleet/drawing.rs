//! The loads as one picture: SVG that is read in a light and in a dark page.

use std::fmt::Write as _;

use super::{Load, PERCENT_MAX};

const WIDTH: f64 = 960.0;
const HEAD: f64 = 86.0;
const ROW: f64 = 138.0;
const FOOT: f64 = 34.0;
const CHART: f64 = 82.0;
const COLUMNS: [f64; 2] = [64.0, 540.0];
const COLUMN: f64 = 396.0;

const STYLE: &str = "<style>
text { font: 12px system-ui, sans-serif; fill: #24292f }
.title { font-size: 16px; font-weight: 600 } .row { font-weight: 600 }
.quiet { fill: #57606a } .right { text-anchor: end } .middle { text-anchor: middle }
.axis { stroke: #8c959f; fill: none } .grid { stroke: #d0d7de; fill: none }
.arrivals { fill: #0969da; stroke: none } .requests { fill: #8250df; stroke: none }
.limit { stroke: #cf222e; stroke-dasharray: 5 4; fill: none } .limit-text { fill: #cf222e }
.page { fill: #ffffff }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .quiet { fill: #9198a1 } .axis { stroke: #656c76 } .grid { stroke: #30363d }
.arrivals { fill: #4493f8 } .requests { fill: #ab7df8 }
.limit { stroke: #f85149 } .limit-text { fill: #f85149 } .page { fill: #0d1117 }
}
</style>";

/// Where a chart stands and what it spans.
struct Chart {
    left: f64,
    bottom: f64,
    /// Seconds at the left end and in all.
    first: f64,
    seconds: f64,
    most: f64,
}

impl Chart {
    fn x(&self, second: f64) -> f64 {
        self.left + (second - self.first) / self.seconds * COLUMN
    }

    fn y(&self, value: f64) -> f64 {
        self.bottom - value / self.most * CHART
    }
}

/// One row for each load: arrivals on the left, requests on the right, to the same scales.
pub fn draw(loads: &[Load]) -> String {
    let height = HEAD + ROW * loads.len() as f64 + FOOT;
    let agents = loads.first().map_or(0, |load| load.agents);
    let title = format!("{} agents lose their backend for an hour", thousands(agents));
    let most = |of: fn(&Load) -> &Vec<u32>| {
        f64::from(loads.iter().filter_map(|load| of(load).iter().max()).max().copied().unwrap_or(1))
    };
    let limit = f64::from(agents) * PERCENT_MAX / 100.0;
    let tops = [
        round_up(most(|load| &load.arrivals).max(limit), limit / 2.0),
        round_up(most(|load| &load.requests), 1_000.0),
    ];
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         role=\"img\">\n<title>{title}: the load when it is back</title>\n{STYLE}\n\
         <rect class=\"page\" width=\"{WIDTH}\" height=\"{height}\"/>\n"
    );
    text(&mut svg, "title", (24.0, 30.0), &title);
    let heads = ["agents that arrive for the first time, per second", "requests per second"];
    for (column, head) in COLUMNS.iter().zip(heads) {
        text(&mut svg, "quiet", (*column, 56.0), head);
    }
    for (row, load) in loads.iter().enumerate() {
        let top = HEAD + ROW * row as f64;
        draw_row(&mut svg, load, top, tops, limit);
    }
    for column in COLUMNS {
        let x = column + COLUMN / 2.0;
        text(
            &mut svg,
            "quiet middle",
            (x, height - 12.0),
            "seconds after the return, or the start",
        );
    }
    svg + "</svg>\n"
}

fn draw_row(svg: &mut String, load: &Load, top: f64, tops: [f64; 2], limit: f64) {
    text(svg, "row", (COLUMNS[0], top), load.scenario.title);
    let worst = format!("worst second: {:.2} % of the agents", load.worst_second_percent());
    text(svg, "quiet right", (COLUMNS[1] + COLUMN, top), &worst);
    let before = Load::SHOWN_BEFORE as f64;
    let seconds = load.requests.len() as f64;
    let charts = COLUMNS.iter().zip(tops).map(|(left, most)| Chart {
        left: *left,
        bottom: top + 14.0 + CHART,
        first: -before,
        seconds,
        most,
    });
    let charts: Vec<Chart> = charts.collect();
    let silent = std::iter::repeat_n(&0, Load::SHOWN_BEFORE as usize);
    let arrivals: Vec<u32> = silent.chain(&load.arrivals).copied().collect();
    let series = [("arrivals", &arrivals), ("requests", &load.requests)];
    for (chart, (class, values)) in charts.iter().zip(series) {
        axes(svg, chart);
        bars(svg, chart, class, values);
        let (base, right) = (chart.bottom, chart.left + COLUMN);
        line(svg, "axis", [(chart.left, base), (right, base)]);
    }
    let (chart, y) = (&charts[0], charts[0].y(limit));
    line(svg, "limit", [(chart.left, y), (chart.left + COLUMN, y)]);
    let label = format!("{PERCENT_MAX} % of the agents");
    text(svg, "limit-text right", (chart.left + COLUMN, y + 15.0), &label);
}

/// A grid in three steps upwards and in minutes to the right, with their numbers.
fn axes(svg: &mut String, chart: &Chart) {
    let right = chart.left + COLUMN;
    for step in [0.0, 0.5, 1.0] {
        let (value, y) = (chart.most * step, chart.y(chart.most * step));
        line(svg, "grid", [(chart.left, y), (right, y)]);
        text(svg, "quiet right", (chart.left - 6.0, y + 4.0), &thousands(value as u32));
    }
    let mut second = chart.first;
    while second <= chart.first + chart.seconds {
        let x = chart.x(second);
        line(svg, "axis", [(x, chart.bottom), (x, chart.bottom + 4.0)]);
        text(svg, "quiet middle", (x, chart.bottom + 17.0), &format!("{second}"));
        second += 60.0;
    }
}

/// A bar for each second, as one shape.
fn bars(svg: &mut String, chart: &Chart, class: &str, values: &[u32]) {
    let mut path = format!("M{:.1} {:.1}", chart.left, chart.bottom);
    let mut last = None;
    for (at, value) in values.iter().enumerate() {
        if last != Some(*value) {
            let x = chart.x(chart.first + at as f64);
            write!(path, "H{x:.1}V{:.1}", chart.y(f64::from(*value))).expect("into a string");
        }
        last = Some(*value);
    }
    let right = chart.left + COLUMN;
    writeln!(svg, "<path class=\"{class}\" d=\"{path}H{right:.1}V{:.1}Z\"/>", chart.bottom)
        .expect("into a string");
}

fn line(svg: &mut String, class: &str, [from, to]: [(f64, f64); 2]) {
    let ((x1, y1), (x2, y2)) = (from, to);
    writeln!(svg, "<path class=\"{class}\" d=\"M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}\"/>")
        .expect("into a string");
}

fn text(svg: &mut String, class: &str, (x, y): (f64, f64), words: &str) {
    writeln!(svg, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{words}</text>")
        .expect("into a string");
}

/// A number as people read it: `10,000`.
fn thousands(number: u32) -> String {
    match number / 1_000 {
        0 => number.to_string(),
        thousands => format!("{thousands},{:03}", number % 1_000),
    }
}

/// The next whole multiple of `step`.
fn round_up(value: f64, step: f64) -> f64 {
    (value / step).ceil() * step
}
