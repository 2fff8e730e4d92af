//! Prints the numbers of the built-in profiles from the data they rest on, with the residuals.
#![expect(clippy::print_stdout, reason = "printing is what this example is for")]

mod fits;

use fits::{A100, H100, L40S_QWEN, PublishedTable};
use kvroute_profile::{Observation, Residuals, StepModel};

fn main() {
    rtx4090();
    for table in [&A100, &H100, &L40S_QWEN] {
        published(table);
    }
    println!("# rtx5080-half-qwen2.5-0.5b (from the L40S row)");
    print_step(&fits::rtx5080());
    cpu_tiny();
}

fn rtx4090() {
    println!("# rtx4090-llama3.1-8b");
    let fits::Rtx4090 { layers, tail, overhead, step } = fits::rtx4090();
    print_step(&step);
    let ms = |seconds: Option<f64>| 1e3 * seconds.unwrap_or(f64::NAN);
    let quartiles = [0.25, 0.5, 0.75].map(|q| ms(overhead.quantile_s(q)));
    println!(
        "beyond kernels of equal contexts, in {} decode-only seconds: mean {:.2} ms, quartiles {quartiles:.2?} ms\n",
        overhead.seconds.len(),
        ms(overhead.mean_s()),
    );
    println!("unequal contexts ({:.2e} units of their file are a second):", tail.units_per_s);
    for (kind, mixed) in [("decode", false), ("mixed", true)] {
        let of_kind =
            |row: &&Observation| row.weight > 0.0 && (row.steps[0].prefill_tokens > 0) == mixed;
        let rows = || tail.steps.iter().filter(of_kind);
        print_residuals(kind, &tail.step, rows());
        print_residuals("without the tail", &layers.step, rows());
    }
    println!("linear layers, by tokens (error of the whole step):");
    for (low, high) in [(1, 16), (17, 64), (65, 256), (257, 512), (513, 1024), (1025, 2048)] {
        let rows = layers.linear.iter().filter(|o| (low..=high).contains(&o.steps[0].tokens));
        print_residuals(&format!("{low}-{high} tokens"), &layers.step, rows);
    }
    println!("steps of the attention grid, by kind:");
    for (kind, prefill, decode) in
        [("decode", false, true), ("prefill", true, false), ("mixed", true, true)]
    {
        let rows = layers.steps.iter().filter(|o| {
            (o.steps[0].prefill_tokens > 0, o.steps[0].decode_seqs > 0) == (prefill, decode)
        });
        let rows: Vec<&Observation> = rows.collect();
        print_residuals(kind, &layers.step, rows.iter().copied());
        print_cells("worst", &layers.step, worst(&layers.step, rows, 5));
    }
    print_residuals("all", &layers.step, &layers.steps);
    println!();
}

fn worst<'a>(
    step: &StepModel,
    mut rows: Vec<&'a Observation>,
    count: usize,
) -> impl Iterator<Item = &'a Observation> {
    rows.sort_by(|a, b| b.relative_error(step).abs().total_cmp(&a.relative_error(step).abs()));
    rows.into_iter().take(count)
}

fn published(table: &PublishedTable) {
    println!("# {}", table.name);
    let fit = table.fit();
    for knee in [8, 4, 2, 1] {
        let step = table.fit_at_knee(knee);
        print_residuals(&format!("knee {knee}"), &step, &fit.observations);
    }
    print_step(&fit.step);
    print_cells("cells", &fit.step, &fit.observations);
}

fn cpu_tiny() {
    println!("# cpu-tiny");
    let fits::CpuTiny { fit, request_overhead_s, request_overhead_s_per_prompt_token } =
        fits::cpu_tiny();
    println!("request_overhead_s = {request_overhead_s:.5e}");
    println!("request_overhead_s_per_prompt_token = {request_overhead_s_per_prompt_token:.5e}");
    print_step(&fit.step);
    print_residuals("all", &fit.step, &fit.observations);
    print_cells("measurements", &fit.step, &fit.observations);
}

/// The `[step]` table, to six digits. Its keys come from serde, so a new coefficient shows up by itself.
fn print_step(step: &StepModel) {
    let serde_json::Value::Object(fields) = serde_json::to_value(step).expect("plain numbers")
    else {
        unreachable!("a struct is an object")
    };
    println!("[step]");
    for (key, value) in fields {
        match value.as_f64() {
            Some(number) if !value.is_u64() && number != 0.0 => println!("{key} = {number:.5e}"),
            _ => println!("{key} = {value}"),
        }
    }
    println!();
}

fn print_residuals<'a>(
    label: &str,
    step: &StepModel,
    rows: impl IntoIterator<Item = &'a Observation>,
) {
    if let Some(r) = Residuals::of(step, rows) {
        println!(
            "{label:>18}: {:5} points, bias {:+6.2} %, median {:5.2} %, p95 {:5.2} %, max {:5.2} %",
            r.count,
            100.0 * r.bias,
            100.0 * r.median,
            100.0 * r.p95,
            100.0 * r.max
        );
    }
}

fn print_cells<'a>(label: &str, step: &StepModel, rows: impl IntoIterator<Item = &'a Observation>) {
    println!("{label}:");
    for row in rows {
        let last = row.steps.last().copied().unwrap_or_default();
        println!(
            "  {} step(s), last: {} tokens ({} prefill), contexts {} prefill {} decode: {:.2} ms, model {:.2} ms, {:+.2} %",
            row.steps.len(),
            last.tokens,
            last.prefill_tokens,
            last.prefill_context,
            last.decode_context,
            1e3 * row.seconds,
            1e3 * row.predicted_s(step),
            100.0 * row.relative_error(step)
        );
    }
    println!();
}
