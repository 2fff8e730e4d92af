//! Forms of output.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;
use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
pub(crate) use kvroute_experiment::write_atomically;
use serde::Serialize;

use crate::failure::Failure;

/// How rows come out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs; complete.
    Json,
    /// For spreadsheets.
    Csv,
}

/// Writes a value as indented JSON.
pub(crate) fn write_json(value: &impl Serialize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)
}

/// [`write_atomically`], making the folders on the way and naming the file if it cannot be written.
pub(crate) fn write_file(path: &Path, content: &[u8]) -> Result<(), Failure> {
    let write = || {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder)?;
        }
        write_atomically(path, content)
    };
    write().with_context(|| format!("cannot write {}", path.display())).map_err(Failure::Run)
}

/// One JSON object a line.
pub(crate) fn json_lines(rows: &[impl Serialize]) -> io::Result<Vec<u8>> {
    let mut lines = Vec::new();
    for row in rows {
        serde_json::to_writer(&mut lines, row)?;
        lines.push(b'\n');
    }
    Ok(lines)
}

/// Writes rows as a table with a header, or as CSV.
pub(crate) fn write_rows(format: Format, header: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if format == Format::Csv {
        let mut csv = csv::Writer::from_writer(out);
        csv.write_record(header)?;
        for row in rows {
            csv.write_record(row)?;
        }
        return csv.flush();
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header);
    table.add_rows(rows);
    for line in table.lines() {
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}
