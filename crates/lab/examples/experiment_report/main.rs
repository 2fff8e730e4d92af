//! Writes the report of an experiment: `experiment_report RESULTS DIR`, where RESULTS is a `results.json` or the name of
//! made-up results (`synthetic:policies`); with two of them, `experiment_report A B DIR` compares them.

use std::error::Error;
use std::fs;
use std::path::Path;

use kvroute_lab::{
    ExperimentReport, ExperimentResults, experiment_comparison, experiment_report, svg_to_png,
};

mod synthetic;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [results, dir] => write(&experiment_report(&read(results)?), Path::new(dir)),
        [a, b, dir] => {
            let report = experiment_comparison((a, &read(a)?), (b, &read(b)?));
            write(&report, Path::new(dir))
        }
        _ => Err("usage: experiment_report RESULTS [RESULTS] DIR".into()),
    }
}

fn read(name: &str) -> Result<ExperimentResults, Box<dyn Error>> {
    match name.strip_prefix("synthetic:") {
        Some(shape) => synthetic::results(shape).ok_or_else(|| {
            format!("no such shape; there are {}", synthetic::SHAPES.join(", ")).into()
        }),
        None => Ok(serde_json::from_str(&fs::read_to_string(name)?)?),
    }
}

fn write(report: &ExperimentReport, dir: &Path) -> Result<(), Box<dyn Error>> {
    let (figures, tables) = (dir.join("figures"), dir.join("tables"));
    fs::create_dir_all(&figures)?;
    fs::create_dir_all(&tables)?;
    fs::write(dir.join("report.html"), &report.html)?;
    fs::write(dir.join("summary.txt"), &report.summary)?;
    for figure in &report.figures {
        fs::write(figures.join(format!("{}.svg", figure.name)), &figure.svg)?;
        fs::write(figures.join(format!("{}.csv", figure.name)), &figure.csv)?;
        fs::write(figures.join(format!("{}.png", figure.name)), svg_to_png(&figure.svg)?)?;
    }
    for table in &report.tables {
        fs::write(tables.join(format!("{}.md", table.name)), &table.markdown)?;
        fs::write(tables.join(format!("{}.csv", table.name)), &table.csv)?;
        fs::write(tables.join(format!("{}.tex", table.name)), &table.latex)?;
    }
    Ok(())
}
