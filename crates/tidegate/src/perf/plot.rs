//! The latency distribution as a drawing.
//!
//! Across: percentiles on the scale of their nines, so that the tail takes as much room as the body. Up: latency,
//! logarithmic. The picture shows at a glance whether a tail is a step (one cause) or a slope (queueing).

use super::report::Report;
use anyhow::{Context, anyhow, ensure};
use plotters::prelude::{
    BLACK, BLUE, ChartBuilder, Color, GREEN, IntoDrawingArea, IntoLogRange, LineSeries, RED,
    RGBColor, SVGBackend, WHITE,
};
use std::fs::{self, File};
use std::io;
use std::path::Path;

const SIZE: (u32, u32) = (960, 540);
/// Points per curve.
const POINTS: u32 = 500;

/// Whether a drawing can be written there, which is better known before the run than after it. Leaves no file that was not
/// there.
pub(crate) fn check(path: &Path) -> io::Result<()> {
    let existed = path.exists();
    File::options().append(true).create(true).open(path)?;
    if existed { Ok(()) } else { fs::remove_file(path) }
}

/// Writes the drawing to `path`.
pub(crate) fn draw(path: &Path, report: &Report) -> anyhow::Result<()> {
    let drawing = drawing(report).context("cannot draw the latencies")?;
    fs::write(path, drawing).with_context(|| format!("cannot write --plot {}", path.display()))
}

fn drawing(report: &Report) -> anyhow::Result<String> {
    let curves: Vec<(&str, Vec<(f64, f64)>)> =
        report.directions().map(|(name, direction)| (name, curve(direction.histogram()))).collect();
    ensure!(!curves.is_empty(), "there is nothing to draw: no I/O ended");
    let points = || curves.iter().flat_map(|(_, points)| points);
    let right = points().map(|point| point.0).fold(1.0, f64::max);
    let low = points().map(|point| point.1).fold(f64::INFINITY, f64::min);
    let high = points().map(|point| point.1).fold(0.0, f64::max);

    let mut drawing = String::new();
    let area = SVGBackend::with_string(&mut drawing, SIZE).into_drawing_area();
    let failed = |error: &dyn std::fmt::Display| anyhow!("{error}");
    area.fill(&WHITE).map_err(|error| failed(&error))?;
    let mut chart = ChartBuilder::on(&area)
        .caption(report.title(), ("sans-serif", 18))
        .margin(16)
        .x_label_area_size(40)
        .y_label_area_size(80)
        .build_cartesian_2d(0.0..right, (low * 0.9..high * 1.1).log_scale())
        .map_err(|error| failed(&error))?;
    chart
        .configure_mesh()
        .x_desc("percentile")
        .y_desc("latency in microseconds")
        .x_labels(8)
        .x_label_formatter(&|nines| percentile_name(*nines))
        .y_label_formatter(&|latency| format!("{latency:.0}"))
        .draw()
        .map_err(|error| failed(&error))?;
    for (name, points) in curves {
        let color = color_of(name);
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(2)))
            .map_err(|error| failed(&error))?
            .label(name)
            .legend(move |(x, y)| {
                plotters::element::PathElement::new([(x, y), (x + 20, y)], color.stroke_width(2))
            });
    }
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()
        .map_err(|error| failed(&error))?;
    area.present().map_err(|error| failed(&error))?;
    // They hold the text until they end.
    drop(chart);
    drop(area);
    Ok(drawing)
}

/// Nines and microseconds, as far as there are samples to tell.
#[allow(clippy::cast_precision_loss)] // A drawing has fewer pixels than f64 has integers.
fn curve(histogram: &hdrhistogram::Histogram<u64>) -> Vec<(f64, f64)> {
    let most = (histogram.len().max(10) as f64).log10();
    (0..=POINTS)
        .map(|step| {
            let nines = most * f64::from(step) / f64::from(POINTS);
            let percentile = 100.0 * (1.0 - 10_f64.powf(-nines));
            let latency = histogram.value_at_percentile(percentile).max(1);
            (nines, latency as f64 / 1000.0)
        })
        .collect()
}

/// 0 is "0", 1 is "90", 2 is "99", 3 is "99.9".
fn percentile_name(nines: f64) -> String {
    let percentile = 100.0 * (1.0 - 10_f64.powf(-nines));
    let digits = if nines <= 2.0 { 0 } else { 7 };
    let text = format!("{percentile:.digits$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

fn color_of(name: &str) -> RGBColor {
    match name {
        "read" => BLUE,
        "write" => RED,
        _ => GREEN,
    }
}
