//! One description of rows for every format: a table for people, lines for `cut` and `awk`, JSON for
//! programs.

use serde_json::{Map, Value};

use super::text;

/// A column's heading, and its name in JSON and in plain output.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    pub title: &'static str,
    pub name: &'static str,
}

pub const fn column(title: &'static str, name: &'static str) -> Column {
    Column { title, name }
}

/// One value. Tables show it for people, plain output and JSON as it is.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    Text(String),
    Number(u64),
    /// A number of bytes.
    Size(u64),
    /// With two decimals.
    Decimal(f64),
    Flag(bool),
    List(Vec<String>),
    Missing,
}

impl From<&str> for Cell {
    fn from(text: &str) -> Cell {
        Cell::Text(text.into())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Cell {
        Cell::Text(text)
    }
}

impl Cell {
    /// Text, or nothing if it is empty.
    pub fn name(text: &str) -> Cell {
        if text.is_empty() { Cell::Missing } else { Cell::Text(text.into()) }
    }

    fn for_table(&self) -> String {
        match self {
            Cell::Text(text) => text::escape(text.as_bytes()),
            Cell::Number(number) => number.to_string(),
            Cell::Size(bytes) => text::size(*bytes),
            Cell::Decimal(number) => format!("{number:.2}"),
            Cell::Flag(flag) => if *flag { "yes" } else { "no" }.into(),
            Cell::List(items) if !items.is_empty() => text::escape(items.join(",").as_bytes()),
            Cell::List(_) | Cell::Missing => "-".into(),
        }
    }

    fn for_plain(&self) -> String {
        match self {
            Cell::Size(bytes) => bytes.to_string(),
            Cell::Flag(flag) => flag.to_string(),
            Cell::Missing => String::new(),
            Cell::List(items) if items.is_empty() => String::new(),
            _ => self.for_table(),
        }
    }

    fn for_json(&self) -> Value {
        match self {
            Cell::Text(text) => text.as_str().into(),
            Cell::Number(number) | Cell::Size(number) => (*number).into(),
            Cell::Decimal(number) => ((number * 1000.0).round() / 1000.0).into(),
            Cell::Flag(flag) => (*flag).into(),
            Cell::List(items) => items.clone().into(),
            Cell::Missing => Value::Null,
        }
    }

    fn is_right(&self) -> bool {
        matches!(self, Cell::Number(_) | Cell::Size(_) | Cell::Decimal(_))
    }
}

/// Rows under headings; numbers to the right.
pub fn rows_table(columns: &[Column], rows: &[Vec<Cell>]) -> String {
    let texts: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(Cell::for_table).collect()).collect();
    let width = |text: &str| text.chars().count();
    let widths: Vec<usize> = (0..columns.len())
        .map(|at| {
            texts.iter().map(|row| width(&row[at])).chain([width(columns[at].title)]).max().unwrap_or(0)
        })
        .collect();
    let rights: Vec<bool> =
        (0..columns.len()).map(|at| rows.first().is_some_and(|row| row[at].is_right())).collect();
    let line = |cells: Vec<&str>| {
        let mut out = String::new();
        for (at, cell) in cells.iter().enumerate() {
            let pad = " ".repeat(widths[at] - width(cell));
            let (left, right) = if rights[at] { (pad.as_str(), "") } else { ("", pad.as_str()) };
            out.push_str(left);
            out.push_str(cell);
            out.push_str(right);
            out.push_str("  ");
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
        out
    };
    let mut out = line(columns.iter().map(|column| column.title).collect());
    for row in &texts {
        out.push_str(&line(row.iter().map(String::as_str).collect()));
    }
    out
}

/// One line a row, tabs between.
pub fn rows_plain(rows: &[Vec<Cell>]) -> String {
    let line = |row: &Vec<Cell>| row.iter().map(Cell::for_plain).collect::<Vec<_>>().join("\t") + "\n";
    rows.iter().map(line).collect()
}

/// An array of objects.
pub fn rows_json(columns: &[Column], rows: &[Vec<Cell>]) -> Value {
    rows.iter().map(|row| object(columns.iter().zip(row))).collect()
}

/// One thing's fields, a line each.
pub fn record_table(fields: &[(Column, Cell)]) -> String {
    let width = fields.iter().map(|(column, _)| column.title.chars().count()).max().unwrap_or(0) + 1;
    let line = |(column, cell): &(Column, Cell)| {
        format!("{:<width$}  {}\n", format!("{}:", column.title), cell.for_table())
    };
    fields.iter().map(line).collect()
}

/// Name and value, a tab between, a line each.
pub fn record_plain(fields: &[(Column, Cell)]) -> String {
    fields.iter().map(|(column, cell)| format!("{}\t{}\n", column.name, cell.for_plain())).collect()
}

pub fn record_json(fields: &[(Column, Cell)]) -> Value {
    object(fields.iter().map(|(column, cell)| (column, cell)))
}

fn object<'a>(fields: impl Iterator<Item = (&'a Column, &'a Cell)>) -> Value {
    let entries = fields.map(|(column, cell)| (column.name.to_string(), cell.for_json()));
    Value::Object(entries.collect::<Map<_, _>>())
}
