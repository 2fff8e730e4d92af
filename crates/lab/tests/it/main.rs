//! The report through its public API, on made-up results of every shape.

use kvroute_lab::{ExperimentResults, experiment_comparison, experiment_report};

#[path = "../../examples/experiment_report/synthetic.rs"]
mod synthetic;

fn results(shape: &str) -> ExperimentResults {
    synthetic::results(shape).expect("the shape is known")
}

#[test]
fn ten_thousand_cells_are_a_page_below_ten_megabytes() {
    let report = experiment_report(&results("large"));
    let rows = report
        .tables
        .iter()
        .find(|table| table.name == "cells")
        .expect("cells")
        .csv
        .lines()
        .count();
    assert!(rows > 10_000, "{rows} rows");
    assert!(report.html.len() < 10_000_000, "{} bytes", report.html.len());
    assert!(report.html.contains("more figures of this section are in the directory figures/"));
}

#[test]
fn every_shape_has_its_sections() {
    for (shape, sections) in [
        ("policies", &["scenes", "load", "fronts", "timelines"][..]),
        ("alpha-beta", &["scenes", "weights", "fronts"]),
        ("staleness", &["scenes", "staleness"]),
        ("scaling", &["scenes", "scaling"]),
        ("factors", &["load", "factors"]),
        ("one-seed", &["scenes", "load"]),
    ] {
        let report = experiment_report(&results(shape));
        for section in sections {
            assert!(
                report.html.contains(&format!("<h2 id=\"{section}\">")),
                "{section} of {shape}"
            );
        }
    }
}

#[test]
fn every_figure_of_every_shape_can_be_drawn_and_has_data() {
    for shape in synthetic::SHAPES {
        for figure in experiment_report(&results(shape)).figures {
            for bad in ["NaN", "inf\"", "inf,", "=\"-"] {
                assert!(!figure.svg.contains(bad), "{bad} in {} of {shape}", figure.name);
            }
            assert!(figure.csv.lines().count() > 1, "{} of {shape} has data", figure.name);
        }
    }
}

#[test]
fn the_same_results_make_the_same_report() {
    let made = results("staleness");
    assert_eq!(experiment_report(&made), experiment_report(&made.clone()));
    let compared = experiment_comparison(("a", &made), ("b", &made));
    assert!(compared.summary.contains("surely lower in 0, higher in 0"), "{}", compared.summary);
}
