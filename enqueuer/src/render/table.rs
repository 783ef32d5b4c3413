//! Rows in columns that are as wide as they need to be.

use crate::render::{style::STRONG, words::upright};

/// The most blanks that a cell is filled up with: `format!` knows no greater width, and panics.
const WIDEST: usize = u16::MAX as usize;

/// A table with a heading. Cells hold no colours: those have no width.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<const N: usize>(heading: [&str; N]) -> Self {
        Self {
            rows: vec![heading.map(str::to_owned).to_vec()],
        }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.iter().map(|cell| upright(cell)).collect());
    }

    /// One line per row. A last column without text leaves no blanks behind.
    pub(crate) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            let widest = cells.map(|cell| cell.chars().count()).max();
            widest.unwrap_or_default().min(WIDEST)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for (n, row) in self.rows.iter().enumerate() {
            let line: String = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:width$}  "))
                .collect();
            let line = line.trim_end();
            match n {
                0 => text += &format!("{STRONG}{line}{STRONG:#}\n"),
                _ => text += &format!("{line}\n"),
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_that_is_wider_than_any_screen_is_shown() {
        let mut table = Table::new(["A", "B"]);
        table.row(["x".repeat(70_000), "y".into()]);
        let text = table.render();
        assert!(text.contains("xx  y\n"), "{} bytes", text.len());
    }
}
